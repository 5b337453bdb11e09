"""Immutable folders of files, published whole, and their verification."""

import fcntl
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress

from crc32c import crc32c

from shoal.errors import CorruptSegment
from shoal.storage import files
from shoal.storage.ports import FileEntry

CHUNK_BYTES = 1 << 20
"""How much of a file is read at a time."""

STAGING_PREFIX = ".tmp-"


class DirectoryStaging:
    """A folder under construction, locked against the cleaning of others."""

    def __init__(self, root: str, name: str) -> None:
        self._root = root
        self._target = os.path.join(root, files.escape(name))
        self._name = name
        with files.typed_errors("a segment"):
            files.make_folder(root)
            self._folder, self._lock = _create_locked(root)

    @property
    def folder(self) -> str:
        """Local path to write files into."""
        return self._folder

    def publish(self) -> list[FileEntry]:
        """See `shoal.storage.ports.Staging.publish`.

        Raises:
            FileExistsError: the name is published already; nothing changed.
            DiskFull: no room.
        """
        if os.path.exists(self._target):
            raise FileExistsError(f"the blob {self._name!r} is published already")
        with files.typed_errors("a segment"):
            found = [_seal_file(self._folder, name) for name in _walk(self._folder)]
            for folder, _, _ in os.walk(self._folder):
                files.fsync_folder(folder)
            os.rename(self._folder, self._target)
            files.fsync_folder(self._root)
        self._release()
        return found

    def discard(self) -> None:
        """Deletes the folder under construction; doing so twice is a no-op."""
        if self._lock >= 0:
            files.remove_folder(self._folder)
            self._release()

    def _release(self) -> None:
        os.close(self._lock)
        self._lock = -1


class DirectoryBlobs:
    """Published folders. See `shoal.storage.ports.Blobs`."""

    def __init__(self, path: str) -> None:
        self._path = path

    def staging(self, name: str) -> DirectoryStaging:
        """A place to build the folder `name` in, on the disk where it will live."""
        return DirectoryStaging(self._path, name)

    def path(self, name: str) -> str:
        """Local path of a published folder."""
        return os.path.join(self._path, files.escape(name))

    def delete(self, name: str) -> None:
        """Deletes a published folder; deleting what is not there is a no-op. Who has
        its files open or mapped keeps them.
        """
        with files.typed_errors("a segment's removal"):
            files.remove_folder(self.path(name))

    def names(self, prefix: str) -> list[str]:
        """Published folders whose name begins with prefix, ascending."""
        try:
            found = os.listdir(self._path)
        except FileNotFoundError:
            return []
        names = (files.unescape(name) for name in found if not name.startswith("."))
        return sorted(name for name in names if name.startswith(prefix))


def verify(folder: str, entries: Iterable[FileEntry]) -> None:
    """Compares a published folder's files with their sizes and checksums, before
    anything else reads a byte of them.

    Cost: reads every byte once, `CHUNK_BYTES` at a time.

    Raises:
        CorruptSegment: a file is missing, or has another size or CRC32C.
    """
    for entry in entries:
        path = os.path.join(folder, entry.name)
        if not os.path.realpath(path).startswith(os.path.realpath(folder) + os.sep):
            raise CorruptSegment(f"{entry.name!r} lies outside its segment", file=entry.name)
        try:
            size = os.path.getsize(path)
            found = checksum(path) if size == entry.size else None
        except OSError as error:
            raise CorruptSegment(
                f"segment file {entry.name} cannot be read: {error.strerror}", file=entry.name
            ) from error
        if found != entry.crc32c:
            raise CorruptSegment(
                f"segment file {entry.name} is damaged: "
                + (f"{size} bytes, not {entry.size}" if found is None else "its checksum fails"),
                file=entry.name,
                folder=os.path.basename(folder),
            )


def checksum(path: str) -> int:
    """CRC32C of a file."""
    crc = 0
    with open(path, "rb", buffering=0) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            crc = crc32c(chunk, crc)
    return crc


def _seal_file(folder: str, name: str) -> FileEntry:
    path = os.path.join(folder, name)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        files.fsync(descriptor, path)
        size = os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    return FileEntry(name, size, checksum(path))


def _walk(folder: str) -> Iterator[str]:
    found = (
        os.path.relpath(os.path.join(parent, name), folder)
        for parent, _, names in os.walk(folder)
        for name in names
    )
    yield from sorted(found)


def _create_locked(root: str) -> tuple[str, int]:
    while True:
        folder = os.path.join(root, STAGING_PREFIX + uuid.uuid4().hex)
        os.mkdir(folder)
        with suppress(FileNotFoundError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Another process's cleaning may have come between the two calls.
            if os.path.isdir(folder):
                return folder, descriptor
            os.close(descriptor)
