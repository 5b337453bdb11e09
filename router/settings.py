"""What an operator can set on a router: `SHOAL_ROUTER_<NAME>`."""

from dataclasses import dataclass

from router.core.options import FanOutOptions
from router.core.pacing import Pacing


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSettings:
    """Settings of one router process.

    Attributes:
        host: address to listen on.
        port: 0 takes a free one.
        data: folder of the cluster's storage (catalog).
        name: this router's name in the topology.
        metrics_port: Prometheus; 0 takes a free one, -1 serves none.
        advertise: host, or host:port, at which clients reach this router; empty for the
            address that it listens on, a host alone for the port that it listens on.
        drain_ms: how long a router that ends still answers, at most.
        cache_entries: encoded questions held; 0 holds none.
        open_queries: questions under way, so that memory stays bounded; how many are admitted
            follows what shards and encoders answer in time.
        open_calls: gets and deletes under way.
        ingest_streams: ingest streams open at a time.
        default_deadline_ms: for callers that give no deadline.
        margin_ms: a reply leaves this long before its caller's deadline, at most.
        fetch_reserve_ms: time kept for fetching documents, at most.
        hold_ms: longest time that a question is held so that others may join it.
        hold_from: open questions (recent peak) from which rounds are held.
        hold_share: share of the recent peak that fills a round.
        round_queries: questions of one round.
        round_bytes: estimated bytes of one round's questions and hits.
        busy_messages: messages outstanding at a shard from which a round waits.
        straggler_wait_ms: longest time that a round waits for a busy shard, unless the shard
            usually takes longer: then half of the time that overload aims at.
        shard_messages: messages outstanding at one replica of a shard.
        shard_queries: questions outstanding at one replica of a shard.
        encoder_queries: questions of one message to an encoder.
        encoder_messages: messages outstanding at one encoder.
        ingest_window_documents: documents of a stream unanswered at a time.
        ingest_window_bytes: bytes of a stream's documents unanswered at a time.
        ingest_batch_documents: documents of one message to a shard or encoder.
        ingest_batch_bytes: bytes of such a message's documents.
        ingest_batches: batches of one stream under way.
        ingest_linger_ms: how long a half-full batch waits for more documents.
        ingest_patience_ms: how long an ingest waits for a shard or encoder to
            come back.
        write_timeout_ms: one call that writes.
        encode_timeout_ms: one message of documents in an encoder.
        admin_timeout_ms: one admin call of a caller who gives no deadline.
        watch_retry_ms: pause before the controller is looked for again.
    """

    host: str = "127.0.0.1"
    port: int = 0
    data: str = ""
    name: str = "router-0"
    metrics_port: int = -1
    advertise: str = ""
    drain_ms: int = 1_500
    cache_entries: int = 10_000
    open_queries: int = 8_192
    open_calls: int = 256
    ingest_streams: int = 64
    default_deadline_ms: int = 10_000
    margin_ms: int = 20
    fetch_reserve_ms: int = 200
    hold_ms: float = 5.0
    hold_from: int = 4
    hold_share: float = 0.75
    round_queries: int = 256
    round_bytes: int = 8 << 20
    busy_messages: int = 1
    straggler_wait_ms: float = 10.0
    shard_messages: int = 32
    shard_queries: int = 4_096
    encoder_queries: int = 64
    encoder_messages: int = 32
    ingest_window_documents: int = 1_024
    ingest_window_bytes: int = 32 << 20
    ingest_batch_documents: int = 64
    ingest_batch_bytes: int = 1 << 20
    ingest_batches: int = 8
    ingest_linger_ms: float = 5.0
    ingest_patience_ms: int = 60_000
    write_timeout_ms: int = 30_000
    encode_timeout_ms: int = 300_000
    admin_timeout_ms: int = 120_000
    watch_retry_ms: int = 200

    def advertised(self, listens: str) -> str:
        """host:port that clients are told; empty where none can be known.

        Args:
            listens: host:port that the router listens on.
        """
        host, _, port = listens.rpartition(":")
        if self.advertise:
            has_port = ":" in self.advertise.rpartition("]")[2]
            return self.advertise if has_port else f"{self.advertise}:{port}"
        # "Every address of this machine" is none that another machine could call.
        return "" if host in {"0.0.0.0", "[::]"} else listens  # noqa: S104

    def search_options(self) -> FanOutOptions:
        """Bounds of the rounds to shards."""
        return FanOutOptions(
            pacing=Pacing(
                hold_ns=int(self.hold_ms * 1e6),
                hold_from=self.hold_from,
                hold_share=self.hold_share,
            ),
            round_queries=self.round_queries,
            round_cost=self.round_bytes,
            busy_messages=self.busy_messages,
            straggler_wait_ns=int(self.straggler_wait_ms * 1e6),
            shard_messages=self.shard_messages,
            shard_queries=self.shard_queries,
        )

    def encode_options(self) -> FanOutOptions:
        """Bounds of the messages to encoders.

        An encode takes milliseconds, so texts gather by themselves while an
        encoder works on two messages: holding them would only cost. An encoder
        forms its batches itself, out of all the messages that it has.
        """
        return FanOutOptions(
            pacing=Pacing(hold_ns=0),
            round_queries=self.encoder_queries,
            round_cost=self.round_bytes,
            busy_messages=2,
            straggler_wait_ns=int(self.straggler_wait_ms * 1e6),
            patient=False,
            shard_messages=self.encoder_messages,
            shard_queries=self.encoder_messages * self.encoder_queries,
        )
