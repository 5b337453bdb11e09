"""Any sequence of operations on a shard leaves it as a dict would be."""

import tempfile
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

from shard_service.settings import ShardSettings
from shoal.types import Similarity
from tests.unit.shard_service.support import Cluster, Doc

DIM = 3
IDS = st.sampled_from([f"id{number}" for number in range(12)])
VECTORS = st.lists(
    st.lists(st.sampled_from([1.0, -1.0, 0.5, 2.0]), min_size=DIM, max_size=DIM),
    min_size=1,
    max_size=3,
)
QUERIES = np.array([[1, 0.5, -1], [0.5, 0.5, 0.5]], dtype=np.float32)


class Operations(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.sequences: dict[str, int] = {}

    @initialize(
        similarity=st.sampled_from(list(Similarity)),
        shards=st.sampled_from([1, 2]),
        seal=st.sampled_from([3, 9, 1 << 30]),
    )
    def begin(self, similarity: Similarity, shards: int, seal: int) -> None:
        self.cluster = Cluster(
            Path(self.folder.name),
            similarity,
            DIM,
            shards,
            settings=ShardSettings(seal_passages=seal),
        )
        self.cluster.open()

    def teardown(self) -> None:
        self.cluster.close()
        self.folder.cleanup()

    @rule(batch=st.lists(st.tuples(IDS, VECTORS, st.text(max_size=3)), min_size=1, max_size=6))
    def write(self, batch: list[tuple[str, list[list[float]], str]]) -> None:
        documents = [Doc(key, np.array(v, dtype=np.float32), text) for key, v, text in batch]
        by_id: dict[str, list[Doc]] = {}
        for document in documents:
            by_id.setdefault(document.id, []).append(document)
        outcomes = self.cluster.write(documents)
        sequences = [sequence for outcome in outcomes for sequence in outcome.sequences]
        assert len(sequences) == len(documents)
        assert all(outcome.position >= max(outcome.sequences) for outcome in outcomes)
        replaced = sum(1 for outcome in outcomes for old in outcome.replaced if old)
        fresh = sum(1 for key in by_id if key not in self.sequences)
        assert replaced == len(documents) - fresh
        self.note_sequences()

    @rule(ids=st.lists(IDS, min_size=1, max_size=4))
    def delete(self, ids: list[str]) -> None:
        expected = len(set(ids) & set(self.cluster.model))
        outcomes = self.cluster.delete(ids)
        assert sum(sum(outcome.found) for outcome in outcomes) == expected
        self.note_sequences()

    @rule()
    def optimize(self) -> None:
        self.cluster.optimize()
        for shard in self.cluster.open_shards:
            assert len(shard.view.segments) <= 1

    @precondition(lambda self: len(self.cluster.model) > 0)
    @rule()
    def reopen(self) -> None:
        self.cluster.close()
        self.cluster.open()

    def note_sequences(self) -> None:
        self.sequences = {}
        for shard in self.cluster.open_shards:
            stored, _ = shard.fetch(
                [k.encode() for k in self.cluster.model], [0] * len(self.cluster.model)
            )
            for one in stored:
                if one is not None:
                    self.sequences[one.content.document.id] = one.sequence

    @invariant()
    def answers_like_the_model(self) -> None:
        model = self.cluster.model
        assert self.cluster.search(QUERIES, 4) == self.cluster.truth(QUERIES, 4)
        assert sum(shard.view.documents for shard in self.cluster.open_shards) == len(model)
        passages = sum(len(document.vectors) for document in model.values())
        assert sum(shard.view.passages for shard in self.cluster.open_shards) == passages

    @invariant()
    def reads_like_the_model(self) -> None:
        ids = [f"id{number}" for number in range(12)]
        keys = [key.encode() for key in ids]
        model = self.cluster.model
        digests = np.array(
            [list(model[key].digest if key in model else bytes(16)) for key in ids], dtype=np.uint8
        )
        found, unchanged = {}, set()
        for shard in self.cluster.open_shards:
            stored, _ = shard.fetch(keys, [0] * len(ids))
            found |= {k: one for k, one in zip(ids, stored, strict=True) if one is not None}
            same, _ = shard.probe(keys, digests)
            unchanged |= {key for key, flag in zip(ids, same, strict=True) if flag}
            others, _ = shard.probe(keys, digests ^ 1)
            assert not any(others)
        assert {k: s.content.document for k, s in found.items()} == {
            k: d.document for k, d in model.items()
        }
        assert unchanged == set(model)
        assert {key: one.sequence for key, one in found.items()} == self.sequences


TestRandomOperations = pytest.mark.slow(Operations.TestCase)
TestRandomOperations.settings = settings(
    max_examples=40,
    stateful_step_count=14,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
