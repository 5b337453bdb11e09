"""Folders are published whole, and verified before they are read."""

import errno
import os
import zlib
from pathlib import Path

import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import CorruptSegment, DiskFull, InvalidRequest
from shoal.storage import blobs as module
from shoal.storage import files
from shoal.storage.blobs import DirectoryBlobs, verify
from shoal.storage.directory import open_storage
from shoal.storage.ports import FileEntry
from tests.unit.storage.damage import flip


@pytest.fixture
def blobs(tmp_path: Path) -> DirectoryBlobs:
    return open_storage(str(tmp_path)).blobs


def publish(blobs: DirectoryBlobs, name: str, **contents: bytes) -> list[FileEntry]:
    staging = blobs.staging(name)
    for file, data in contents.items():
        (Path(staging.folder) / file).write_bytes(data)
    return staging.publish()


def test_the_checksum_is_crc32c() -> None:
    assert crc32c(b"123456789") == 0xE3069283 != zlib.crc32(b"123456789")


def test_a_folder_is_seen_only_when_published(blobs: DirectoryBlobs) -> None:
    staging = blobs.staging("0f/1/0/segment-1")
    folder = Path(staging.folder)
    (folder / "vectors").write_bytes(b"123456789")
    (folder / "deeper").mkdir()
    (folder / "deeper" / "ids").write_bytes(b"")
    assert blobs.names("") == []
    assert not os.path.exists(blobs.path("0f/1/0/segment-1"))
    entries = staging.publish()
    assert entries == [FileEntry("deeper/ids", 0, 0), FileEntry("vectors", 9, 0xE3069283)]
    assert blobs.names("0f/1/") == ["0f/1/0/segment-1"]
    assert blobs.names("0f/2/") == []
    verify(blobs.path("0f/1/0/segment-1"), entries)
    staging.discard()
    assert blobs.names("") == ["0f/1/0/segment-1"]


def test_files_folder_and_parent_are_fsynced_in_order(
    blobs: DirectoryBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging = blobs.staging("segment")
    (Path(staging.folder) / "file").write_bytes(b"x")
    steps: list[str] = []
    fsync, rename = os.fsync, os.rename

    def note_fsync(descriptor: int) -> None:
        steps.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def note_rename(source: str, target: str) -> None:
        steps.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "rename", note_rename)
    staging.publish()
    assert steps == ["file", os.path.basename(staging.folder), "rename", "blobs"]


def test_a_published_folder_is_never_replaced(blobs: DirectoryBlobs) -> None:
    publish(blobs, "segment", file=b"first")
    second = blobs.staging("segment")
    (Path(second.folder) / "file").write_bytes(b"second")
    with pytest.raises(FileExistsError):
        second.publish()
    second.discard()
    second.discard()
    assert (Path(blobs.path("segment")) / "file").read_bytes() == b"first"
    assert blobs.names("") == ["segment"]


def test_what_is_discarded_or_deleted_is_gone(blobs: DirectoryBlobs, tmp_path: Path) -> None:
    blobs.staging("never").discard()
    publish(blobs, "segment", file=b"x")
    with (Path(blobs.path("segment")) / "file").open("rb") as held:
        blobs.delete("segment")
        blobs.delete("segment")
        assert held.read() == b"x"
    assert list((tmp_path / "blobs").iterdir()) == []


def test_staging_of_the_dead_is_removed_and_of_the_living_kept(tmp_path: Path) -> None:
    blobs = open_storage(str(tmp_path)).blobs
    living, dead = blobs.staging("living"), blobs.staging("dead")
    (Path(dead.folder) / "file").write_bytes(b"half")
    dead._release()
    open_storage(str(tmp_path))
    assert not os.path.exists(dead.folder)
    living.publish()
    assert blobs.names("") == ["living"]


def test_no_room_publishes_nothing(blobs: DirectoryBlobs, monkeypatch: pytest.MonkeyPatch) -> None:
    staging = blobs.staging("segment")

    def no_room(_source: str, _target: str) -> None:
        raise OSError(errno.ENOSPC, "injected")

    with monkeypatch.context() as full:
        full.setattr(os, "rename", no_room)
        with pytest.raises(DiskFull):
            staging.publish()
    assert blobs.names("") == []
    staging.publish()


@pytest.mark.parametrize("name", ["", "../x", "a/../../x", "/etc", "a//b"])
def test_path_tricks_are_refused(blobs: DirectoryBlobs, name: str) -> None:
    for act in (blobs.staging, blobs.path, blobs.delete):
        with pytest.raises(InvalidRequest):
            act(name)


def test_every_damage_is_found(
    blobs: DirectoryBlobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 16)
    entries = publish(blobs, "segment", index=bytes(range(100)), empty=b"")
    folder = Path(blobs.path("segment"))
    path = folder / "index"
    data = path.read_bytes()
    verify(str(folder), entries)
    for offset in range(len(data)):
        flip(path, offset, 1 << offset % 8)
        with pytest.raises(CorruptSegment, match="checksum"):
            verify(str(folder), entries)
        flip(path, offset, 1 << offset % 8)
    for changed in (data[:-1], data + b"\0", b""):
        path.write_bytes(changed)
        with pytest.raises(CorruptSegment, match="bytes, not 100") as caught:
            verify(str(folder), entries)
        assert caught.value.metadata == {"file": "index", "folder": "segment"}
    path.unlink()
    with pytest.raises(CorruptSegment, match="cannot be read"):
        verify(str(folder), entries)


def test_a_manifest_cannot_lead_out_of_its_segment(blobs: DirectoryBlobs, tmp_path: Path) -> None:
    publish(blobs, "segment", file=b"x")
    (tmp_path / "outside").write_bytes(b"123456789")
    for name in ("../../outside", str(tmp_path / "outside"), ""):
        with pytest.raises(CorruptSegment):
            verify(blobs.path("segment"), [FileEntry(name, 9, 0xE3069283)])


@settings(max_examples=30)
@given(
    st.from_regex(
        r"[a-zA-Z0-9_-][a-zA-Z0-9_.-]{0,9}(/[a-zA-Z0-9_-][a-z.A-Z]{0,5}){0,3}", fullmatch=True
    )
)
def test_names_survive_escaping(name: str) -> None:
    escaped = files.escape(name)
    assert files.unescape(escaped) == name
    assert "/" not in escaped
    assert escaped == escaped.lower()
    assert not escaped.startswith(".")
