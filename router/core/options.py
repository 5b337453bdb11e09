"""What bounds a fan-out."""

from dataclasses import dataclass, field

from router.core.pacing import Pacing


@dataclass(frozen=True, slots=True, kw_only=True)
class FanOutOptions:
    """Bounds; durations in ns.

    Attributes:
        pacing: when rounds are held.
        round_queries: queries of one round.
        round_cost: summed cost of one round's queries.
        busy_messages: messages outstanding at one replica of a shard from which
            the next round waits for one to come back...
        straggler_wait_ns: ...but no query waits longer than this for it...
        patient: ...or than such messages usually take, if that is longer: of use where a
            full message costs less than several; see `AdaptiveLimit.patience_ns`.
        shard_messages: messages outstanding at one replica of a shard.
        shard_queries: queries outstanding at one replica of a shard.
    """

    pacing: Pacing = field(default_factory=Pacing)
    round_queries: int = 256
    round_cost: int = 8 << 20
    busy_messages: int = 1
    straggler_wait_ns: int = 10_000_000
    patient: bool = True
    shard_messages: int = 32
    shard_queries: int = 2_048
