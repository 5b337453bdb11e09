"""A shard that another server takes over: prepared beside its writer, fenced, read to the last."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from shard_service import registry as registries
from shard_service.core.writers import Writers
from shard_service.registry import Registry
from shoal.errors import CorruptLog, ShoalError, StaleTopology, SupersededWriter
from shoal.rpc.shard.v1 import shard_pb2
from shoal.types import Similarity
from tests.unit.shard_service.support import Cluster, Doc, opened, rows, search

DIM = 4
QUERIES = np.eye(DIM, dtype=np.float32)


def documents(first: int, count: int) -> list[Doc]:
    return [
        Doc(f"d{n}", np.random.default_rng(n).normal(size=(1, DIM)).astype(np.float32))
        for n in range(first, first + count)
    ]


@pytest.fixture
def old(tmp_path: Path) -> Iterator[Cluster]:
    """The server that holds the shard: a segment of 20 documents and a tail of 10."""
    with opened(Cluster(tmp_path, Similarity.DOT, DIM)) as cluster:
        cluster.write(documents(0, 20))
        cluster.optimize()
        cluster.write(documents(20, 10))
        yield cluster


@contextmanager
def other(cluster: Cluster) -> Iterator[Registry]:
    """Another server on the same data."""
    registry = Registry(cluster.settings, cluster.storage)
    try:
        yield registry
    finally:
        registry.close_all()


def take_over(registry: Registry, cluster: Cluster, epoch: int = 2) -> None:
    status = registry.open(cluster.spec(0), epoch, "", Writers.USERS)
    assert (status.state, status.writer_epoch) == (shard_pb2.SHARD_STATE_SERVING, epoch)


def test_what_is_written_while_it_is_prepared_is_there_after_it_is_taken_over(
    old: Cluster,
) -> None:
    with other(old) as registry:
        ref = old.spec(0).ref
        assert registry.prepare(old.spec(0)).state == shard_pb2.SHARD_STATE_PREPARED
        with pytest.raises(StaleTopology, match="does not hold"):
            registry.serving(ref)
        old.write(documents(25, 15))
        old.delete(["d3"])
        old.optimize()
        old.write(documents(40, 5))
        take_over(registry, old)
        found = rows(search(registry.serving(ref), QUERIES, 50))
        assert found == old.truth(QUERIES, 50)
        assert found == old.search(QUERIES, 50), "the old one answers from what it holds"


def test_segments_that_were_prepared_are_not_read_again(
    old: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with other(old) as registry:
        registry.prepare(old.spec(0))

        def refuse(*_: object) -> None:
            raise AssertionError("it was read before")

        monkeypatch.setattr("shard_service.segments.verify", refuse)
        take_over(registry, old)


def test_the_old_writer_refuses_and_says_nothing_of_what_it_may_not_know(old: Cluster) -> None:
    [shard] = old.open_shards
    known = documents(0, 1)[0]
    digests = np.frombuffer(known.digest, np.uint8)[np.newaxis]
    assert shard.probe([b"d0"], digests)[0] == [True]
    with other(old) as registry:
        take_over(registry, old)
        with pytest.raises(SupersededWriter):
            old.write(documents(50, 1))
        with pytest.raises(StaleTopology, match="taken"):
            shard.probe([b"d0"], digests)
        with pytest.raises(StaleTopology, match="taken"):
            shard.check_owner()


def test_the_old_sealer_deletes_nothing_of_the_new_writers(old: Cluster) -> None:
    [shard] = old.open_shards
    ref = old.spec(0).ref
    with other(old) as registry:
        take_over(registry, old)
        new = registry.serving(ref)
        new.optimize()
        with pytest.raises(SupersededWriter):
            shard.optimize()
        shard._sealer._store.clean()
    with other(old) as registry:
        take_over(registry, old, epoch=3)
        assert rows(search(registry.serving(ref), QUERIES, 50)) == old.truth(QUERIES, 50)


def test_a_shard_opened_anew_in_its_place_answers_all_the_while(
    old: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref, real = old.spec(0).ref, registries.Shard
    with other(old) as registry:
        take_over(registry, old)
        before = registry.serving(ref)

        def watched(*arguments: object) -> object:
            assert registry.serving(ref) is before
            [status] = registry.statuses()
            assert (status.state, status.writer_epoch) == (shard_pb2.SHARD_STATE_SERVING, 2)
            return real(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(registries, "Shard", watched)
        take_over(registry, old, epoch=3)
        assert registry.serving(ref) is not before
        assert rows(search(before, QUERIES, 50)) == old.truth(QUERIES, 50), "views stay readable"


def test_a_preparation_can_be_repeated_and_let_go(old: Cluster) -> None:
    with other(old) as registry:
        registry.prepare(old.spec(0))
        old.optimize()
        registry.prepare(old.spec(0))
        registry.close(old.spec(0).ref, drop=False)
        assert registry.statuses() == []
    old.write(documents(60, 1))


def test_a_damaged_log_is_found_before_its_writer_is_fenced(old: Cluster) -> None:
    old.write(documents(60, 1))
    damage(old)
    with other(old) as registry:
        with pytest.raises(CorruptLog):
            registry.prepare(old.spec(0))
        assert registry.statuses() == []
    old.open_shards[0].check_owner()


def damage(cluster: Cluster) -> None:
    """Flips a bit of a record that no segment holds, and that is known synced."""
    [log] = [path for path in (cluster.data / "logs").rglob("*.log") if path.is_file()]
    content = bytearray(log.read_bytes())
    content[len(content.rstrip(b"\0")) * 4 // 5] ^= 1
    log.write_bytes(content)


def test_an_opening_that_fails_leaves_what_answered(
    old: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = old.spec(0).ref
    with other(old) as registry:
        take_over(registry, old)
        before = registry.serving(ref)

        def fail(*_: object) -> None:
            raise SupersededWriter("somebody else was faster")

        monkeypatch.setattr(registries, "Shard", fail)
        with pytest.raises(ShoalError):
            registry.open(old.spec(0), 3, "", Writers.USERS)
        assert registry.serving(ref) is before
