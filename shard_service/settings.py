"""Settings of a shard server, from the environment (`SHOAL_SHARD_*`)."""

from dataclasses import dataclass

from shoal.wire.metrics import OFF


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSettings:
    """What a shard server is told at start.

    Attributes:
        host: address to listen on.
        port: 0 takes a free one.
        data: the data directory, shared with the controller.
        search_threads: searches that run at once; each uses one core.
        metrics_port: Prometheus metrics; 0 takes a free port, -1 serves none.
        max_waiting_searches: search messages that may wait; more are OVERLOADED.
        max_waiting_writes: write and delete messages that may wait for the log of one
            shard; more are OVERLOADED.
        seal_passages: passages at which the tail is sealed.
        seal_bytes: bytes of documents at which the tail is sealed.
        max_tail_passages: passages that may wait to be sealed; writes beyond them are
            OVERLOADED until sealing has caught up.
        flat_passages: "auto" builds exact indexes up to this many passages.
        target_recall: recall@10 for which approximate indexes are tuned.
    """

    host: str = "127.0.0.1"
    port: int = 0
    data: str = "data"
    search_threads: int = 1
    metrics_port: int = OFF
    max_waiting_searches: int = 256
    max_waiting_writes: int = 256
    seal_passages: int = 4_096
    seal_bytes: int = 64 << 20
    max_tail_passages: int = 65_536
    flat_passages: int = 8_192
    target_recall: float = 0.99
