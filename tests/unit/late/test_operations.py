"""Any sequence of operations on a quantised shard leaves it as a fresh build of what is left."""

import tempfile
import uuid
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from shard_service.codecs import write_codec
from shard_service.core.late import LateFound, LateQuery
from shard_service.core.records import Content, Version, encode_content
from shard_service.core.vectors import starts_of
from shard_service.indexes.codec import train
from shard_service.settings import ShardSettings
from shard_service.shard import Shard
from shard_service.spec import ShardSpec
from shard_service.token_layout import TokenLayout
from shard_service.writer import DeleteOperation, WriteOperation
from shoal.ids import content_digest
from shoal.kernels.fixed import to_fixed, unit_rows
from shoal.storage.directory import Storage, open_storage
from shoal.types import Document, Kind, ShardRef, Similarity
from tests.unit.shard_service.support import TIMEOUT_S, rows

DIM = 8
DICE = np.random.default_rng(4)
WORDS = unit_rows(DICE.standard_normal((60, DIM)).astype(np.float32)).astype(np.float16)
CODEC = train(WORDS.astype(np.float32), 4)
ASKED = [to_fixed(unit_rows(DICE.standard_normal((n, DIM)).astype(np.float32))) for n in (1, 5)]
QUERIES = [LateQuery(each, 4, 2, refined) for each in ASKED for refined in (0, 3, 50)]
IDS = st.sampled_from([f"id{number}" for number in range(9)])
PASSAGES = st.lists(st.lists(st.integers(0, 59), max_size=4), min_size=1, max_size=3)


class Held:
    """A shard, and what it must hold: per id the words of each passage."""

    def __init__(self, folder: Path, seal: int) -> None:
        self.storage: Storage = open_storage(str(folder))
        self._settings = ShardSettings(seal_passages=seal)
        collection = uuid.uuid4().hex
        self._spec = ShardSpec(
            ShardRef(collection, 1, 0), 1, DIM, Similarity.COSINE, "", "auto",
            Kind.COLBERT, CODEC.name,
        )  # fmt: skip
        write_codec(CODEC, collection, self.storage)
        self.epoch = 0
        self.open()

    def open(self) -> None:
        self.epoch += 1
        self.shard = Shard(self._spec, self.storage, self._settings, self.epoch)

    def write(self, batch: list[tuple[str, list[list[int]]]], packed: bool = False) -> None:
        layout = self.shard.layout
        assert isinstance(layout, TokenLayout)
        counts = np.array([len(words) for _, passages in batch for words in passages])
        chosen = [word for _, passages in batch for words in passages for word in words]
        vectors = layout.vectors(WORDS[chosen], starts_of(counts))
        if packed:  # as copied from another generation of the codec
            vectors = layout.vectors(layout.codec.pack(vectors.codes), vectors.starts)
        versions = [version(key, len(passages)) for key, passages in batch]
        self.shard.write(WriteOperation(versions, vectors)).result(TIMEOUT_S)

    def answers(self) -> list[object]:
        found: LateFound = self.shard.search_late(
            self.shard.view, QUERIES, lambda: np.ones(len(QUERIES), np.bool_)
        )
        assert found.centroid_scores is not None
        return [rows(found.hits), found.centroid_scores.tolist(), found.tokens_scored]


def version(key: str, passages: int) -> Version:
    document = Document(key, "", f"text of {key}", b"")
    digest = content_digest(document, b"")
    spans = np.stack([np.arange(passages), np.arange(1, passages + 1)], 1).astype(np.uint32)
    content = encode_content(Content(document, digest, passages, spans))
    return Version(key.encode(), digest, passages, content)


class Operations(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.model: dict[str, list[list[int]]] = {}

    @initialize(seal=st.sampled_from([3, 9, 1 << 30]))
    def begin(self, seal: int) -> None:
        self.held = Held(Path(self.folder.name, "held"), seal)

    def teardown(self) -> None:
        self.held.shard.close()
        self.folder.cleanup()

    @rule(batch=st.lists(st.tuples(IDS, PASSAGES), min_size=1, max_size=6), packed=st.booleans())
    def write(self, batch: list[tuple[str, list[list[int]]]], packed: bool) -> None:
        self.held.write(batch, packed)
        self.model.update(batch)

    @rule(ids=st.lists(IDS, min_size=1, max_size=4))
    def delete(self, ids: list[str]) -> None:
        keys = [key.encode() for key in ids]
        self.held.shard.delete(DeleteOperation(keys)).result(TIMEOUT_S)
        for key in ids:
            self.model.pop(key, None)

    @rule()
    def optimize(self) -> None:
        self.held.shard.optimize()

    @precondition(lambda self: len(self.model) > 0)
    @rule()
    def reopen(self) -> None:
        self.held.shard.close()
        self.held.open()

    @invariant()
    def answers_like_a_fresh_build(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            fresh = Held(Path(folder), 1 << 30)
            try:
                if self.model:
                    fresh.write(list(self.model.items()))
                assert self.held.answers() == fresh.answers()
            finally:
                fresh.shard.close()


TestRandomOperations = pytest.mark.slow(Operations.TestCase)
TestRandomOperations.settings = settings(
    max_examples=25,
    stateful_step_count=12,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
