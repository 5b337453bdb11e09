"""Whose writes a shard takes: nothing that it no longer takes is acknowledged."""

import threading
from pathlib import Path

import numpy as np
import pytest

from shard_service.core.writers import Writers
from shard_service.shard import Shard
from shard_service.writer import DeleteOperation
from shoal.errors import StaleTopology
from shoal.types import Similarity
from tests.unit.shard_service.support import Cluster, Doc, opened

PATIENCE_S = 0.2


def filled(folder: Path) -> Cluster:
    return Cluster(folder, Similarity.COSINE, dim=4)


def test_a_write_between_check_and_queue_is_in_the_position_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(filled(tmp_path)) as cluster:
        cluster.write([Doc("x", np.ones((1, 4), np.float32))])
        (shard,) = cluster.open_shards
        writer = shard._writer
        entered, go, admitted = threading.Event(), threading.Event(), threading.Event()
        check = writer.check

        def slow(by: Writers) -> None:
            check(by)
            entered.set()
            go.wait()

        monkeypatch.setattr(writer, "check", slow)
        operation = DeleteOperation([b"x"])
        positions: list[int] = []

        def admit() -> None:
            positions.append(shard.admit(Writers.NOBODY))
            admitted.set()

        threads = [
            threading.Thread(target=shard.delete, args=(operation,)),
            threading.Thread(target=admit),
        ]
        threads[0].start()
        entered.wait()
        threads[1].start()
        # Where nothing holds it back it is done by then, and too early.
        admitted.wait(PATIENCE_S)
        go.set()
        for thread in threads:
            thread.join()
        assert operation.done.result().position <= positions[0]


def refused(shard: Shard, writer: Writers) -> bool:
    try:
        shard.delete(DeleteOperation([b"nobody"]), writer).result()
    except StaleTopology:
        return True
    return False


@pytest.mark.parametrize("writers", list(Writers))
def test_only_those_who_may_write_do(tmp_path: Path, writers: Writers) -> None:
    with opened(filled(tmp_path)) as cluster:
        (shard,) = cluster.open_shards
        shard.admit(writers)
        assert shard.writers is writers
        assert {by: refused(shard, by) for by in (Writers.USERS, Writers.BUILDER)} == {
            by: by is not writers for by in (Writers.USERS, Writers.BUILDER)
        }
        if writers is not Writers.USERS:
            with pytest.raises(StaleTopology):
                shard.probe([b"x"], np.zeros((1, 16), np.uint8))
        shard.admit(Writers.USERS)
        assert not refused(shard, Writers.USERS)


def test_a_word_that_comes_late_undoes_none(tmp_path: Path) -> None:
    with opened(filled(tmp_path)) as cluster:
        (shard,) = cluster.open_shards
        shard.admit(Writers.NOBODY, shard.writer_epoch, 2)
        for epoch, order in ((shard.writer_epoch, 1), (shard.writer_epoch + 1, 3)):
            with pytest.raises(StaleTopology):
                shard.admit(Writers.USERS, epoch, order)
        assert shard.writers is Writers.NOBODY
        shard.admit(Writers.USERS, shard.writer_epoch, 3)
        assert shard.writers is Writers.USERS


def test_a_shard_opens_with_its_writers(tmp_path: Path) -> None:
    cluster = filled(tmp_path)
    shard = Shard(cluster.spec(0), cluster.storage, cluster.settings, 1, writers=Writers.NOBODY)
    try:
        assert refused(shard, Writers.USERS)
        assert refused(shard, Writers.BUILDER)
    finally:
        shard.close()
