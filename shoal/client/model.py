"""What the client gives back: frozen values without behaviour of their own.

Nothing here knows gRPC or protobuf.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, overload

from shoal.types import Coverage

Payload = dict[str, Any]


class Span(NamedTuple):
    """A half-open range of characters of a document's text, from 0."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Hit:
    """A document that matched.

    Attributes:
        id: the document's id.
        score: float64; larger is better.
        title: empty unless asked for.
        text: the whole text; empty unless asked for.
        payload: what else the user stored; empty unless asked for.
        chunk: characters of the best passage, or None (no fields asked for, or
            the document brought its vector).
        shard: the shard that holds it.
        passage: number of the best passage, from 0.
    """

    id: str
    score: float
    title: str = ""
    text: str = ""
    payload: Payload = field(default_factory=dict)
    chunk: Span | None = None
    shard: int = 0
    passage: int = 0

    @property
    def chunk_text(self) -> str:
        """The text of the best passage; the whole text where no chunk is known."""
        return self.text if self.chunk is None else self.text[self.chunk.start : self.chunk.end]

    def __repr__(self) -> str:
        return f"Hit({self.id!r}, {self.score:.4f}, {_shortened(self.title or self.text)!r})"


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of a request went on the server, in milliseconds.

    Attributes:
        encode_ms: waiting for and running the encoder; 0 for a cached query.
        queue_ms: waiting for a round to leave.
        fan_out_ms: from sending a round to its last needed reply.
        merge_ms: merging and cutting.
        fetch_ms: fetching the documents of the hits.
        total_ms: from receipt to reply.
        encode_cached: the encoder's answer came from the router's cache.
        tokens_scored: kind colbert: tokens compared by their full codes, for all
            questions of the round.
        exhaustive: kind colbert: every document was scored.
    """

    encode_ms: float = 0.0
    queue_ms: float = 0.0
    fan_out_ms: float = 0.0
    merge_ms: float = 0.0
    fetch_ms: float = 0.0
    total_ms: float = 0.0
    encode_cached: bool = False
    tokens_scored: int = 0
    exhaustive: bool = False


@dataclass(frozen=True, slots=True)
class Answer(Sequence[Hit]):
    """The hits of one question, best first, and what stands behind them.

    Attributes:
        hits: by (score descending, id ascending by bytes).
        coverage: how much of the collection answered.
        fingerprint: of the collection's encoder; empty without one.
        timings: where the time went; in a batch, of the batch as a whole.
        generation: the generation that answered.
        position: every write up to here was seen; give it as `after`. Opaque.
        truncated: the question was cut at the encoder's length.
        superseded: hits left out because their document changed meanwhile.
        request_id: finds the request in the servers' logs.
    """

    hits: tuple[Hit, ...]
    coverage: Coverage
    fingerprint: str = ""
    timings: Timings = field(default_factory=Timings)
    generation: int = 0
    position: bytes = b""
    truncated: bool = False
    superseded: int = 0
    request_id: str = ""

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Hit, ...]: ...
    def __getitem__(self, index: int | slice) -> Hit | tuple[Hit, ...]:
        return self.hits[index]

    def __repr__(self) -> str:
        best = f", best {self.hits[0]!r}" if self.hits else ""
        return (
            f"Answer({len(self.hits)} hits{best}, coverage {self.coverage.ratio:.3f}, "
            f"{self.timings.total_ms:.1f} ms)"
        )


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document as its user stored it; may be given to `ingest` again."""

    id: str
    title: str = ""
    text: str = ""
    payload: Payload = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"StoredDocument({self.id!r}, {_shortened(self.title or self.text)!r})"


@dataclass(frozen=True, slots=True)
class Rejection:
    """A document that was not stored, and why.

    Attributes:
        id: as given; empty when it could not be read.
        reason: of the error table, e.g. "DIMENSION_MISMATCH".
        message: what happened and what to do, for a person.
        number: its place in the iterable, from 0.
        metadata: facts for a program.
    """

    id: str
    reason: str
    message: str
    number: int
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What became of the documents of one ingest; the three counts add up to them.

    Attributes:
        stored: documents that are durable and found from now on.
        unchanged: documents whose content was stored already. A document that
            was sent again after a broken stream may count here.
        rejected: the others, in the order in which they were refused.
        duplicates: documents among the stored that replaced an earlier one of
            this ingest with the same id: the later one won.
        truncated: documents of which some words were not encoded.
        position: give it as `after` to a search that must see all of this. Opaque.
    """

    stored: int = 0
    unchanged: int = 0
    rejected: tuple[Rejection, ...] = ()
    duplicates: int = 0
    truncated: int = 0
    position: bytes = b""

    @property
    def documents(self) -> int:
        """Documents with an outcome so far."""
        return self.stored + self.unchanged + len(self.rejected)

    def __repr__(self) -> str:
        return (
            f"IngestReport(stored={self.stored}, unchanged={self.unchanged}, "
            f"rejected={len(self.rejected)}, duplicates={self.duplicates}, "
            f"truncated={self.truncated})"
        )


@dataclass(frozen=True, slots=True)
class DeleteReport:
    """What became of the ids of one delete.

    Attributes:
        found: per id, in the order given: there was such a document.
        position: give it as `after` to a search that must see the deletes. Opaque.
    """

    found: tuple[bool, ...]
    position: bytes = b""

    @property
    def deleted(self) -> int:
        """Documents that are gone now."""
        return sum(self.found)


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """One shard as the cluster knows it.

    Attributes:
        shard: its number, from 0.
        server: name of the server that holds it.
        state: "opening", "serving", "corrupt" or "unreachable".
        documents: live documents.
        passages: live passages.
        tail_passages: passages that are in no segment yet.
        position: sequence number of the newest write.
        index_bytes: bytes of the segments.
        recall: lowest recall@10 measured at build time; 1.0 if exact.
        indexes: FAISS factory strings of the segments, oldest first.
        loss: what `accept_loss` must name when the shard is corrupt; else empty.
        detail: what is wrong, for a person; empty when nothing is.
        tokens: kind colbert: live tokens.
        token_bytes: kind colbert: bytes of the tokens as kept, offsets included.
        codec: kind colbert: what keeps the tokens: "fixed-point", "pq8, 4096 centroids".
        new_tokens: kind colbert: tokens that users wrote since the server opened the shard.
        far_tokens: of them, those farther from their centroid than three in four of the tokens
            that the codec was trained on; many more than a quarter say that a rebuild is due.
    """

    shard: int
    server: str
    state: str
    documents: int
    passages: int
    tail_passages: int
    position: int
    index_bytes: int
    recall: float
    indexes: tuple[str, ...]
    loss: str
    detail: str
    tokens: int = 0
    token_bytes: int = 0
    codec: str = ""
    new_tokens: int = 0
    far_tokens: int = 0


@dataclass(frozen=True, slots=True)
class EffortInfo:
    """One way to search a generation of kind colbert, as calibrated when it was built.

    Attributes:
        name: "low", "normal" or "high".
        probes: centroids of each query token that count by their own similarity.
        refined: documents that are scored by their codes; 0 scores every one.
        recall: overlap@10 with scoring every document, as measured.
    """

    name: str
    probes: int
    refined: int
    recall: float


@dataclass(frozen=True, slots=True)
class GenerationInfo:
    """A generation of a collection that does not serve.

    Attributes:
        generation: its number.
        phase: "training", "copying", "previous", or "given up" (see detail).
        documents: that it holds.
        documents_total: that it is to hold, as far as is known.
        shards: how many.
        encoder: reference of its encoder, or "none".
        index: its index.
        detail: why it does not get on; empty when nothing is wrong.
    """

    generation: int
    phase: str
    documents: int
    documents_total: int
    shards: int
    encoder: str
    index: str
    detail: str


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """A collection, its settings and its shards.

    Attributes:
        name: as created.
        uuid: 32 hex digits; a name created again gets a new one.
        kind: "single" or "colbert".
        similarity: "cosine", "dot" or "l2".
        dim: columns of its vectors.
        encoder: reference of the encoder, or "none".
        fingerprint: of the encoder; empty when it is "none".
        index: "auto", "flat", "hnsw" or "ivf-pq".
        chunk_tokens: tokens of one passage; 0 when chunking is off.
        chunk_overlap: tokens that neighbouring passages share.
        generation: the generation that serves, from 1.
        documents: live documents, as last published by the shards.
        shards: ascending by number.
        code_bytes: kind colbert: residual bytes of a token once quantised.
        codec: kind colbert: name of the generation's codec; empty in fixed point.
        efforts: kind colbert: how its searches may look; none where all are exhaustive.
        pool_factor: kind colbert: encoded token vectors that became one, on average.
        generations: those that do not serve, ascending by number.
    """

    name: str
    uuid: str
    kind: str
    similarity: str
    dim: int
    encoder: str
    fingerprint: str
    index: str
    chunk_tokens: int
    chunk_overlap: int
    generation: int
    documents: int
    shards: tuple[ShardInfo, ...]
    code_bytes: int = 0
    codec: str = ""
    efforts: tuple[EffortInfo, ...] = ()
    pool_factor: int = 0
    generations: tuple[GenerationInfo, ...] = ()

    def __repr__(self) -> str:
        return (
            f"CollectionInfo({self.name!r}, {self.documents} documents, "
            f"{len(self.shards)} shards, {self.encoder}, dim {self.dim})"
        )


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """One process of the cluster.

    Attributes:
        name: e.g. "router-0".
        role: "router", "encoder", "server" or "controller".
        address: host:port.
        state: "starting", "serving", "draining" or "dead".
        pid: on its host; 0 when unknown.
        restarts: times that it was started again.
        detail: why it does not serve; empty when nothing is wrong.
        metrics_address: host:port of its Prometheus page; empty when it serves none.
    """

    name: str
    role: str
    address: str
    state: str
    pid: int
    restarts: int
    detail: str = ""
    metrics_address: str = ""


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """The cluster's state.

    Attributes:
        processes: routers, encoders, servers, the controller.
        collections: ascending by name.
        topology_version: of the map that the answering router follows.
        limits: what one request may ask for, by name.
        version: of Shoal on the router.
        controller_reachable: if not, processes and shards are as last known.
    """

    processes: tuple[ProcessInfo, ...]
    collections: tuple[CollectionInfo, ...]
    topology_version: int
    limits: Mapping[str, int]
    version: str
    controller_reachable: bool

    def __repr__(self) -> str:
        return (
            f"ClusterStatus({len(self.processes)} processes, "
            f"{len(self.collections)} collections, version {self.version})"
        )


def _shortened(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
