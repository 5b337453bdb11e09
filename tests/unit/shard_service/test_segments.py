"""Segments on disk: damage is found, fences hold, the log's prefix goes only after."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shard_service import assembly
from shard_service.settings import ShardSettings
from shard_service.shard import Shard
from shoal.errors import CorruptSegment, DiskFull, Overloaded, SupersededWriter
from shoal.types import Similarity
from tests.unit.shard_service.support import TIMEOUT_S, Cluster, Doc, opened

DIM = 4
POLL_S = 0.005


def documents(count: int, start: int = 0) -> list[Doc]:
    rng = np.random.default_rng(start)
    return [
        Doc(f"d{n}", rng.standard_normal((1, DIM)).astype(np.float32))
        for n in range(start, start + count)
    ]


def sealed(cluster: Cluster) -> None:
    """One segment with a dead document, and an empty tail but for its successor."""
    with opened(cluster):
        cluster.write(documents(30))
        cluster.optimize()
        cluster.write(documents(15, 30))
        cluster.delete(["d3"])
        cluster.optimize()
        cluster.delete(["d4"])


def segment_files(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "blobs").rglob("*") if path.is_file())


@pytest.mark.slow
def test_every_damaged_file_is_refused(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, Similarity.COSINE, DIM)
    sealed(cluster)
    names = {path.name for path in segment_files(tmp_path)}
    assert {"vectors", "contents", "index.faiss", "hashes", "squares"} <= names
    for path in segment_files(tmp_path):
        good = path.read_bytes()
        for at in (0, len(good) // 2, len(good) - 1):
            path.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
            with pytest.raises(CorruptSegment, match=path.name):
                cluster.open()
        path.write_bytes(good[:-1])
        with pytest.raises(CorruptSegment, match=path.name):
            cluster.open()
        path.write_bytes(good)
    cluster.open()
    cluster.close()


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, Similarity.DOT, DIM)
    sealed(cluster)
    segment_files(tmp_path)[0].unlink()
    with pytest.raises(CorruptSegment):
        cluster.open()


def test_masks_of_kept_segments_survive_the_log(tmp_path: Path) -> None:
    """Deletes of sealed documents, then a sealing that lets their log entries go."""
    cluster = Cluster(tmp_path, Similarity.L2, DIM, settings=ShardSettings(seal_passages=8))
    query = np.ones((1, DIM), dtype=np.float32)
    with opened(cluster):
        cluster.write(documents(200))
        cluster.optimize()
        cluster.delete(["d1", "d2"])
        cluster.write([Doc("d5", np.ones((1, DIM), dtype=np.float32))])
        cluster.write(documents(10, 300))
        shard = cluster.open_shards[0]
        wait_for_sealing(shard)
        assert len(shard.view.segments) == 2
        assert shard.view.sources[0].live.live_rows == 197
    with opened(cluster):
        shard = cluster.open_shards[0]
        assert [source.live.live_rows for source in shard.view.sources] == [197, 11]
        assert cluster.search(query, 250) == cluster.truth(query, 250)


def wait_until(condition: Callable[[], bool]) -> None:
    """Looks again and again, for a minute at most."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(POLL_S)


def wait_for_sealing(shard: Shard) -> None:
    wait_until(lambda: shard.tail_passages < 8)


def test_documents_that_die_while_they_are_sealed_stay_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(tmp_path, Similarity.COSINE, DIM)
    query = np.ones((1, DIM), dtype=np.float32)
    assemble = assembly.assemble
    with opened(cluster):
        cluster.write(documents(40))
        cluster.optimize()
        cluster.write(documents(20, 40))

        def meanwhile(*args: object) -> object:
            built = assemble(*args)  # type: ignore[arg-type]
            cluster.delete(["d1", "d45"])
            cluster.write([Doc("d2", query), Doc("d46", query), Doc("new", query)])
            return built

        monkeypatch.setattr("shard_service.sealer.assemble", meanwhile)
        cluster.optimize()
        shard = cluster.open_shards[0]
        assert [source.live.live_rows for source in shard.view.sources] == [56, 3]
        assert cluster.search(query, 99) == cluster.truth(query, 99)
    with opened(cluster):
        assert cluster.search(query, 99) == cluster.truth(query, 99)


def test_a_failed_sealing_leaves_the_shard_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(tmp_path, Similarity.COSINE, DIM)
    query = np.ones((1, DIM), dtype=np.float32)
    with opened(cluster):
        cluster.write(documents(40))
        before = segment_files(tmp_path)

        def full(*_: object) -> None:
            raise DiskFull("no room for a segment")

        with monkeypatch.context() as patched:
            patched.setattr("shard_service.single_layout.indexes.write", full)
            with pytest.raises(DiskFull):
                cluster.optimize()
        assert segment_files(tmp_path) == before
        cluster.write(documents(1, 77))
        assert cluster.search(query, 9) == cluster.truth(query, 9)
        cluster.optimize()
        assert len(cluster.open_shards[0].view.segments) == 1


def test_an_older_writer_can_publish_no_segment(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, Similarity.COSINE, DIM)
    with opened(cluster):
        cluster.write(documents(20))
        old = cluster.open_shards[0]
        newer = Shard(cluster.spec(0), cluster.storage, cluster.settings, cluster.epoch + 1)
        try:
            with pytest.raises(SupersededWriter):
                old.optimize()
            assert newer.view.documents == 20
            newer.optimize()
        finally:
            newer.close()
            cluster.epoch += 1
    with opened(cluster):
        assert cluster.open_shards[0].view.documents == 20


@pytest.mark.slow
def test_sizes_stay_logarithmic_and_folders_are_tidied(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, Similarity.DOT, DIM, settings=ShardSettings(seal_passages=8))
    with opened(cluster):
        shard = cluster.open_shards[0]
        for start in range(0, 200, 8):
            cluster.write(documents(8, start))
            wait_for_sealing(shard)
            assert len(shard.view.segments) <= 6
        sizes = [segment.table.rows for segment in shard.view.segments]
        assert sum(sizes) == 200
        assert sizes == sorted(sizes, reverse=True)
        folders = [path for path in (tmp_path / "blobs").iterdir() if path.is_dir()]
        assert len(folders) == len(sizes)


def test_a_segment_with_many_dead_rows_is_rebuilt(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, Similarity.DOT, DIM)
    with opened(cluster):
        cluster.write(documents(50))
        cluster.optimize()
        shard = cluster.open_shards[0]
        first = shard.view.segments[0].name
        cluster.delete([f"d{n}" for n in range(25)])
        wait_until(lambda: shard.view.segments[0].name != first)
        assert shard.view.segments[0].table.rows == 25
        cluster.delete([f"d{n}" for n in range(25, 50)])
        wait_until(lambda: not shard.view.segments)
        assert shard.view.documents == 0
    with opened(cluster):
        assert cluster.open_shards[0].view.documents == 0
        assert cluster.search(np.ones((1, DIM), dtype=np.float32), 3) == [[]]


def test_an_ingest_that_outruns_sealing_is_held_back_until_it_has_caught_up(
    tmp_path: Path,
) -> None:
    settings = ShardSettings(seal_passages=1 << 30, max_tail_passages=50)
    cluster = Cluster(tmp_path, Similarity.COSINE, DIM, settings=settings)
    with opened(cluster):
        cluster.write(documents(50))
        with pytest.raises(Overloaded, match="50 passages wait") as refused:
            cluster.write(documents(1, 60))
        assert refused.value.retry_after_s > 0
        cluster.delete(["d1"])
        cluster.optimize()
        cluster.write(documents(1, 60))
        query = np.ones((1, DIM), dtype=np.float32)
        assert cluster.search(query, 99) == cluster.truth(query, 99)
