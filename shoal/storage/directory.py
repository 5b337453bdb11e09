"""Durable storage in one directory: `<data>/catalog`, `<data>/logs`, `<data>/blobs`."""

import errno
import os
from dataclasses import dataclass

from shoal.storage import files
from shoal.storage.blobs import DirectoryBlobs
from shoal.storage.catalog import DirectoryCatalog
from shoal.storage.log import DirectoryLogs

_TEMPORARIES_DEPTH = (1, 2, 0)
"""How deep catalog, logs and blobs have temporary names."""


@dataclass(frozen=True, slots=True)
class Storage:
    """Everything durable that a process works with."""

    catalog: DirectoryCatalog
    logs: DirectoryLogs
    blobs: DirectoryBlobs


def open_storage(data: str) -> Storage:
    """Opens a data directory, making it if it is not there.

    Temporary files and folders of dead processes are removed; those of living
    ones stay: many processes share the directory. On read-only media nothing is
    written, and reading works.

    Raises:
        DiskFull: no room to make it.
    """
    paths = [os.path.join(os.path.abspath(data), name) for name in ("catalog", "logs", "blobs")]
    try:
        for path, depth in zip(paths, _TEMPORARIES_DEPTH, strict=True):
            files.make_folder(path)
            _clean(path, depth)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise files.as_typed(error, "the data directory") from error
    catalog, logs, blobs = paths
    return Storage(DirectoryCatalog(catalog), DirectoryLogs(logs), DirectoryBlobs(blobs))


def _clean(folder: str, depth: int) -> None:
    """Removes stale temporaries in a folder and `depth` levels below it."""
    files.remove_stale(folder)
    if depth:
        for name in os.listdir(folder):
            path = os.path.join(folder, name)
            if os.path.isdir(path):
                _clean(path, depth - 1)
