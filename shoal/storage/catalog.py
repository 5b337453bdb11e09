"""The catalog in a folder: each key a folder, each version a file.

A version is published by `link(2)` under its number, which only one can do. A
deletion is a version too (a tombstone), so numbers only grow: a writer that read
a value before it was deleted cannot publish over its successor.
"""

import os
from contextlib import suppress

from shoal.errors import CorruptCatalog
from shoal.storage import envelope, files
from shoal.storage.ports import Versioned

KEPT_VERSIONS = 16
"""Newest versions of a key that stay. A writer that is stopped between looking
and linking while others publish this many may take a freed number: it sees the
newer ones afterwards and has lost.
"""

_VALUE, _GONE = b"v", b"-"


class DirectoryCatalog:
    """Small values with compare-and-swap. See `shoal.storage.ports.Catalog`."""

    def __init__(self, path: str) -> None:
        self._path = path

    def get(self, key: str) -> Versioned:
        """The newest value; version 0 if the key is absent or deleted.

        Raises:
            CorruptCatalog: the value fails its checksum.
        """
        version, body = self._newest(key)
        if body[:1] != _VALUE:
            return Versioned(0, b"")
        return Versioned(version, body[1:])

    def put(self, key: str, value: bytes, expected_version: int) -> int | None:
        """See `shoal.storage.ports.Catalog.put`. After a deletion, the version
        returned is not expected_version + 1 but the next number never used.

        Raises:
            CorruptCatalog: the value before fails its checksum.
            DiskFull: no room.
            NotSupported: the media is read-only.
        """
        newest, body = self._newest(key)
        current = newest if body[:1] == _VALUE else 0
        if expected_version != current:
            return None
        return self._publish(key, newest + 1, _VALUE + value)

    def delete(self, key: str) -> None:
        """Removes a key and its versions; removing what is not there is a no-op."""
        while True:
            newest, body = self._newest(key)
            if body[:1] != _VALUE:
                return
            if self._publish(key, newest + 1, _GONE) is not None:
                self._prune(key, keep_from=newest + 1)
                return

    def keys(self, prefix: str) -> list[str]:
        """Keys that begin with prefix, ascending."""
        names = (files.unescape(name) for name in _names(self._path) if not name.startswith("."))
        return sorted(name for name in names if name.startswith(prefix) and self.get(name).version)

    def _folder(self, key: str) -> str:
        return os.path.join(self._path, files.escape(key))

    def _versions(self, key: str) -> list[int]:
        return sorted(int(name) for name in _names(self._folder(key)) if name.isdecimal())

    def _newest(self, key: str) -> tuple[int, bytes]:
        folder = self._folder(key)
        while True:
            newest = max(self._versions(key), default=0)
            if newest == 0:
                return 0, b""
            try:
                with open(os.path.join(folder, _file_name(newest)), "rb") as stream:
                    stored = stream.read()
            except FileNotFoundError:
                continue  # newer ones were published, and this one pruned, meanwhile
            body = envelope.unwrap(_context(key, newest), stored)
            if body is None:
                raise CorruptCatalog(
                    f"version {newest} of the catalog's {key!r} is damaged", key=key, version=newest
                )
            return newest, body

    def _publish(self, key: str, version: int, body: bytes) -> int | None:
        folder = self._folder(key)
        data = envelope.wrap(_context(key, version), body)
        with files.typed_errors("the catalog"):
            files.make_folder(folder)
            if not files.publish(folder, _file_name(version), data):
                return None
            if self._versions(key)[-1] >= version + KEPT_VERSIONS:
                os.unlink(os.path.join(folder, _file_name(version)))
                return None
            self._prune(key, keep_from=version + 1 - KEPT_VERSIONS)
        return version

    def _prune(self, key: str, keep_from: int) -> None:
        for version in self._versions(key):
            if version < keep_from:
                with suppress(FileNotFoundError):
                    os.unlink(os.path.join(self._folder(key), _file_name(version)))


def _file_name(version: int) -> str:
    return f"{version:020d}"


def _context(key: str, version: int) -> str:
    return f"catalog {key} {version}"


def _names(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []
