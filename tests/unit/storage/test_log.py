"""The log in a folder: durability, full disks, fencing, read-only media."""

import errno
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from shoal.errors import (
    CorruptLog,
    DiskFull,
    InvalidRequest,
    NotSupported,
    SupersededWriter,
)
from shoal.storage import files, log_writer, ports
from shoal.storage.directory import open_storage
from shoal.storage.log import DirectoryLogs
from shoal.storage.log_folder import LogFolder
from shoal.storage.ports import Log
from shoal.storage.records import HEADER_BYTES
from shoal.types import ShardRef
from tests.unit.storage.damage import SHARD, contents, crash, log_files, log_folder, write


def test_a_new_log_is_empty(logs: DirectoryLogs) -> None:
    opened = logs.open(SHARD, 1)
    assert opened.last_sequence == 0
    assert contents(opened) == {}
    assert opened.append([]) == 0
    opened.idle()
    opened.close()
    assert logs.read(SHARD).last_sequence == 0


def test_entries_are_numbered_without_gaps_across_writers(logs: DirectoryLogs) -> None:
    expected: dict[int, bytes] = {}
    for epoch in range(1, 6):
        opened = logs.open(SHARD, epoch)
        assert opened.last_sequence == len(expected)
        assert opened.append([b"%d a" % epoch, b""]) == len(expected) + 2
        expected |= {len(expected) + 1: b"%d a" % epoch, len(expected) + 2: b""}
        assert contents(opened) == expected
        assert contents(opened, 3) == {n: p for n, p in expected.items() if n > 3}
        opened.close()
        opened.close()
        with pytest.raises(ValueError, match="closed"):
            opened.append([b"late"])


def test_one_fsync_for_each_append(logs: DirectoryLogs, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = logs.open(SHARD, 1)
    opened.append([b"the first makes the file"])
    calls: list[int] = []
    monkeypatch.setattr(os, "fdatasync", calls.append)
    monkeypatch.setattr(os, "fsync", calls.append)
    opened.append([b"x"] * 100)
    assert len(calls) == 1


def test_files_roll_and_a_prefix_is_dropped(
    logs: DirectoryLogs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_writer, "FILE_BYTES", 1000)
    opened = logs.open(SHARD, 1)
    for number in range(1, 31):
        assert opened.append([b"%03d" % number * 50]) == number
    count = len(log_files(tmp_path))
    assert count > 5
    opened.drop_prefix(0)
    assert len(log_files(tmp_path)) == count
    opened.drop_prefix(17)
    kept = min(int(path.stem) for path in log_files(tmp_path))
    assert 10 < kept <= 18
    assert list(contents(opened, 17)) == list(range(18, 31))
    with pytest.raises(CorruptLog) as caught:
        contents(opened, 0)
    assert caught.value.metadata["first_lost"] == "1"
    opened.close()
    opened = logs.open(SHARD, 2)
    assert list(contents(opened, 17)) == list(range(18, 31))
    opened.drop_prefix(10**9)
    assert log_files(tmp_path) == []
    opened.close()
    for epoch in (3, 4):
        opened = logs.open(SHARD, epoch)
        assert opened.last_sequence == 30
        assert contents(opened, 30) == {}
        opened.close()
    opened = logs.open(SHARD, 5)
    assert opened.append([b"on"]) == 31


def test_a_batch_larger_than_a_file_has_one_of_its_own(
    logs: DirectoryLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_writer, "FILE_BYTES", 1000)
    opened = logs.open(SHARD, 1)
    payloads = [b"a" * 5000, b"b", b"c" * 5000]
    for payload in payloads:
        opened.append([payload])
    assert list(contents(opened).values()) == payloads
    assert list(contents(logs.open(SHARD, 2)).values()) == payloads


def test_a_full_disk_refuses_the_write_and_the_log_goes_on(
    logs: DirectoryLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_writer, "STEP_BYTES", 4096)
    opened = logs.open(SHARD, 1)
    with monkeypatch.context() as full:
        full.setattr(os, "posix_fallocate", no_room)
        with pytest.raises(DiskFull):
            opened.append([b"not even a file"])
    assert opened.append([b"one"]) == 1
    with monkeypatch.context() as full:
        full.setattr(os, "posix_fallocate", no_room)
        assert opened.append([b"fits in what is preallocated"]) == 2
        with pytest.raises(DiskFull):
            opened.append([b"x" * 5000])
        assert opened.append([b"small ones still fit"]) == 3
        opened.idle()
        assert len(contents(opened)) == 3
    assert opened.append([b"x" * 5000]) == 4
    opened.close()
    assert len(contents(logs.open(SHARD, 2))) == 4


def no_room(_descriptor: int, _offset: int, _length: int) -> None:
    raise OSError(errno.ENOSPC, "injected")


def test_the_last_bytes_of_a_disk_are_used(
    logs: DirectoryLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.posix_fallocate

    def little_room(descriptor: int, offset: int, length: int) -> None:
        if length >= log_writer.STEP_BYTES:
            no_room(descriptor, offset, length)
        real(descriptor, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", little_room)
    opened = logs.open(SHARD, 1)
    assert opened.append([b"x" * 5000]) == 1
    assert opened.append([b"x" * 5000]) == 2


def test_a_write_that_fails_half_way_leaves_nothing(
    logs: DirectoryLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that breaks the promise of preallocation."""
    opened = logs.open(SHARD, 1)
    opened.append([b"one"])
    real = files.write_all

    def half(descriptor: int, data: bytes, offset: int) -> None:
        real(descriptor, data[: len(data) - 48], offset)
        raise OSError(errno.ENOSPC, "injected")

    with monkeypatch.context() as broken:
        broken.setattr(files, "write_all", half)
        with pytest.raises(DiskFull):
            opened.append([b"refused", b"refused", b"refused"])
    assert opened.append([b"two"]) == 2
    crash(opened)
    assert contents(logs.open(SHARD, 2)) == {1: b"one", 2: b"two"}


def test_the_marker_is_written_when_idle_and_once(logs: DirectoryLogs, tmp_path: Path) -> None:
    opened = logs.open(SHARD, 1)
    opened.append([b"one"])
    assert logs.read(SHARD).synced_sequence == 0
    opened.idle()
    assert logs.read(SHARD).synced_sequence == logs.read(SHARD).last_sequence == 1
    (path,) = log_files(tmp_path)
    before = path.read_bytes()
    opened.idle()
    assert path.read_bytes() == before


def test_one_writer_in_an_epoch(logs: DirectoryLogs) -> None:
    opened = logs.open(SHARD, 4)
    with pytest.raises(SupersededWriter, match="holds this epoch"):
        logs.open(SHARD, 4)
    with pytest.raises(SupersededWriter, match="epoch 4 owns it"):
        logs.open(SHARD, 3)
    opened.append([b"one"])
    opened.close()
    again = logs.open(SHARD, 4)
    assert again.append([b"two"]) == 2


def test_a_superseded_writer_acknowledges_nothing_more(logs: DirectoryLogs) -> None:
    old = logs.open(SHARD, 1)
    old.append([b"one"])
    new = logs.open(SHARD, 2)
    for _ in range(2):
        with pytest.raises(SupersededWriter):
            old.append([b"late"])
    with pytest.raises(SupersededWriter):
        old.drop_prefix(1)
    with pytest.raises(SupersededWriter):
        old.idle()
    old.close()
    assert new.append([b"two"]) == 2
    assert contents(new) == {1: b"one", 2: b"two"}
    new.close()
    assert contents(logs.open(SHARD, 3)) == {1: b"one", 2: b"two"}


def test_dropping_a_log_stops_its_writer(logs: DirectoryLogs, tmp_path: Path) -> None:
    for entries in ([], [b"one"]):
        opened = logs.open(SHARD, 1)
        opened.append(entries)
        logs.drop(SHARD)
        logs.drop(SHARD)
        assert not log_folder(tmp_path).exists()
        with pytest.raises(SupersededWriter):
            opened.append([b"late"])
        opened.close()
        assert logs.read(SHARD).last_sequence == 0


def test_logs_of_shards_are_apart(logs: DirectoryLogs) -> None:
    other = ShardRef(SHARD.collection, SHARD.generation, 2)
    write(logs, [[b"one"]])
    opened = logs.open(other, 1)
    assert opened.last_sequence == 0
    opened.append([b"other"])
    logs.drop(SHARD)
    assert contents(opened) == {1: b"other"}


@pytest.mark.parametrize("collection", ["", "papers", "../" * 10 + "ab", "A" * 32, "0" * 31])
def test_only_hex_identities_become_folders(logs: DirectoryLogs, collection: str) -> None:
    with pytest.raises(InvalidRequest):
        logs.open(ShardRef(collection, 1, 0), 1)
    with pytest.raises(InvalidRequest):
        logs.drop(ShardRef(collection, 1, 0))


def test_epochs_begin_at_one(logs: DirectoryLogs) -> None:
    with pytest.raises(InvalidRequest):
        logs.open(SHARD, 0)


def test_read_only_media_serve(
    logs: DirectoryLogs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = logs.open(SHARD, 1)
    opened.append([b"one"])
    opened.append([b"acknowledged, then killed"])
    crash(opened)
    make_read_only(monkeypatch)
    storage = open_storage(str(tmp_path))
    snapshot = storage.logs.read(SHARD)
    assert contents(snapshot) == {1: b"one", 2: b"acknowledged, then killed"}
    assert contents(snapshot, 1) == {2: b"acknowledged, then killed"}
    assert snapshot.synced_sequence == 1
    for writing in (
        lambda: storage.logs.open(SHARD, 2),
        lambda: storage.logs.drop(SHARD),
        lambda: storage.catalog.put("key", b"value", 0),
        lambda: storage.blobs.staging("segment"),
    ):
        with pytest.raises(NotSupported, match="read-only"):
            writing()
    assert storage.catalog.get("key").version == 0
    empty = open_storage(str(tmp_path / "nothing"))
    assert empty.catalog.keys("") == empty.blobs.names("") == []


def make_read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "injected")

    def open_read_only(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            refuse()
        return real(path, flags, *rest, **named)

    for name in ("mkdir", "rename", "replace", "link", "unlink", "truncate"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(os, "open", open_read_only)


def test_a_reader_sees_no_loss_where_a_writer_is_quicker(
    logs: DirectoryLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader loads the first bytes, the writer adds two batches, the reader
    loads the rest: a hole, then a record that calls it synced.
    """
    opened = logs.open(SHARD, 1)
    opened.append([b"one"])
    folder_type = LogFolder
    real = folder_type.load
    raced: list[bool] = []

    def racing(self: Any, file: Any, length: int | None = None) -> bytes:
        before = real(self, file, length)
        if raced:
            return before
        raced.append(True)
        opened.append([b"two"])
        opened.append([b"three"])
        return before[: HEADER_BYTES + 96] + real(self, file, length)[HEADER_BYTES + 96 :]

    monkeypatch.setattr(folder_type, "load", racing)
    assert list(contents(logs.read(SHARD))) == [1, 2, 3]
    assert raced


def test_a_failed_fsync_ends_the_process_and_is_not_retried(
    logs: DirectoryLogs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The real exit is in tests/cluster; here, that nothing follows the first failure."""

    class Ended(BaseException):
        pass

    def end(status: int) -> None:
        raise Ended(status)

    opened: Log = logs.open(SHARD, 1)
    opened.append([b"one"])
    calls: list[int] = []

    def failing(descriptor: int) -> None:
        calls.append(descriptor)
        raise OSError(errno.EIO, "injected")

    monkeypatch.setattr(os, "fdatasync", failing)
    monkeypatch.setattr(os, "_exit", end)
    with caplog.at_level(logging.CRITICAL), pytest.raises(Ended, match="74"):
        opened.append([b"two"])
    assert len(calls) == 1
    assert "fsync" in caplog.text
    assert "the process ends" in caplog.text


def test_the_adapters_are_what_the_ports_ask_for(tmp_path: Path) -> None:
    """Checked by the type checker; at run time, that the names are there."""
    storage = open_storage(str(tmp_path))
    logs: ports.Logs = storage.logs
    catalog: ports.Catalog = storage.catalog
    blobs: ports.Blobs = storage.blobs
    for port, adapter in ((ports.Logs, logs), (ports.Catalog, catalog), (ports.Blobs, blobs)):
        names = [name for name in vars(port) if not name.startswith("_")]
        assert names
        assert all(hasattr(adapter, name) for name in names)
