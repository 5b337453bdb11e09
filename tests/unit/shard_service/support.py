"""Shards over real directories, and the brute force that they must equal."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shard_service.core.records import Content, Version, encode_content
from shard_service.core.vectors import Dense
from shard_service.indexes import threads
from shard_service.settings import ShardSettings
from shard_service.shard import Shard
from shard_service.spec import ShardSpec
from shard_service.writer import DeleteOperation, DeleteOutcome, WriteOperation, WriteOutcome
from shoal.ids import content_digest, shard_of
from shoal.kernels import Hits
from shoal.storage.directory import Storage, open_storage
from shoal.types import Document, ShardRef, Similarity

TIMEOUT_S = 60.0

threads.use_one_core()


@dataclass
class Doc:
    """A document with its passages' vectors, [passages, dim] float32."""

    id: str
    vectors: np.ndarray
    text: str = ""

    @property
    def document(self) -> Document:
        return Document(self.id, f"title of {self.id}", self.text, b'{"a": 1}')

    @property
    def digest(self) -> bytes:
        return content_digest(self.document, self.vectors.tobytes())

    def version(self) -> Version:
        passages = len(self.vectors)
        spans = np.stack([np.arange(passages), np.arange(1, passages + 1)], 1).astype(np.uint32)
        content = Content(self.document, self.digest, passages, spans)
        return Version(self.id.encode(), self.digest, passages, encode_content(content))


@dataclass
class Cluster:
    """All shards of one generation in one process, and the documents that they must hold."""

    data: Path
    similarity: Similarity
    dim: int
    shards: int = 1
    index: str = "flat"
    settings: ShardSettings = field(default_factory=lambda: ShardSettings(seal_passages=1 << 30))
    collection: str = field(default_factory=lambda: uuid.uuid4().hex)
    epoch: int = 0
    model: dict[str, Doc] = field(default_factory=dict)
    open_shards: list[Shard] = field(default_factory=list)

    @property
    def storage(self) -> Storage:
        return open_storage(str(self.data))

    def spec(self, shard: int) -> ShardSpec:
        ref = ShardRef(self.collection, 1, shard)
        return ShardSpec(ref, self.shards, self.dim, self.similarity, "", self.index)

    def open(self, accept_loss: str = "") -> None:
        self.epoch += 1
        self.open_shards = [
            Shard(self.spec(shard), self.storage, self.settings, self.epoch, accept_loss)
            for shard in range(self.shards)
        ]

    def close(self) -> None:
        for shard in self.open_shards:
            shard.close()
        self.open_shards = []

    def optimize(self) -> None:
        for shard in self.open_shards:
            shard.optimize()

    def write(self, documents: list[Doc]) -> list[WriteOutcome]:
        outcomes = []
        for number, shard in enumerate(self.open_shards):
            mine = [d for d in documents if shard_of(d.id.encode(), self.shards) == number]
            if mine:
                vectors = Dense(np.concatenate([d.vectors for d in mine]))
                operation = WriteOperation([d.version() for d in mine], vectors)
                outcomes.append(shard.write(operation).result(TIMEOUT_S))
        self.model.update({document.id: document for document in documents})
        return outcomes

    def delete(self, ids: list[str]) -> list[DeleteOutcome]:
        outcomes = []
        for number, shard in enumerate(self.open_shards):
            mine = [key.encode() for key in ids if shard_of(key.encode(), self.shards) == number]
            if mine:
                outcomes.append(shard.delete(DeleteOperation(mine)).result(TIMEOUT_S))
        for key in ids:
            self.model.pop(key, None)
        return outcomes

    def search(self, queries: np.ndarray, top_k: int) -> list[list[tuple[float, bytes, int]]]:
        """Per query: merged (score, id, passage), best first."""
        per_shard = [rows(search(shard, queries, top_k)) for shard in self.open_shards]
        merged = []
        for number in range(len(queries)):
            hits = [hit for answer in per_shard for hit in answer[number]]
            merged.append(sorted(hits, key=lambda hit: (-hit[0], hit[1]))[:top_k])
        return merged

    def truth(self, queries: np.ndarray, top_k: int) -> list[list[tuple[float, bytes, int]]]:
        """What the answer must be, from the model alone."""
        if not self.model:
            return [[] for _ in queries]
        documents = list(self.model.values())
        vectors = np.concatenate([document.vectors for document in documents])
        expected = []
        for query in queries:
            scores = brute_scores(self.similarity, query, vectors)
            hits, row = [], 0
            for document in documents:
                mine = scores[row : row + len(document.vectors)]
                hits.append((float(mine.max()), document.id.encode(), int(mine.argmax())))
                row += len(document.vectors)
            expected.append(sorted(hits, key=lambda hit: (-hit[0], hit[1]))[:top_k])
        return expected


@contextmanager
def opened(cluster: Cluster) -> Iterator[Cluster]:
    cluster.open()
    try:
        yield cluster
    finally:
        cluster.close()


def search(shard: Shard, queries: np.ndarray, top_k: int) -> Hits:
    count = len(queries)
    wanted = np.ones(count, dtype=np.bool_)
    return shard.search(shard.view, queries, np.full(count, top_k), lambda: wanted).hits


def rows(hits: Hits) -> list[list[tuple[float, bytes, int]]]:
    """Per query: (score, id, passage)."""
    found, start, hit = [], 0, 0
    for count in hits.counts.tolist():
        mine = []
        for _ in range(count):
            length = int(hits.id_lengths[hit])
            mine.append(
                (
                    float(hits.scores[hit]),
                    hits.ids[start : start + length],
                    int(hits.passages[hit]),
                )
            )
            start, hit = start + length, hit + 1
        found.append(mine)
    return found


def brute_scores(similarity: Similarity, query: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Float64 brute force, in the order of addition that DESIGN fixes; written apart from
    the product's kernel.
    """

    def fold(terms: np.ndarray) -> np.ndarray:
        width = 1
        while width < terms.shape[1]:
            width *= 2
        padded = np.zeros((len(terms), width))
        padded[:, : terms.shape[1]] = terms
        while padded.shape[1] > 1:
            half = padded.shape[1] // 2
            padded = padded[:, :half] + padded[:, half:]
        return padded[:, 0]

    q, x = query.astype(np.float64)[np.newaxis], vectors.astype(np.float64)
    if similarity is Similarity.L2:
        return -fold((q - x) ** 2) + 0.0
    dot = fold(q * x)
    if similarity is Similarity.DOT:
        return dot + 0.0
    return dot / np.sqrt(fold(q * q) * fold(x * x)) + 0.0
