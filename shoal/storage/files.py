"""Durable steps on a directory: write, publish, replace, remove.

Every step ends with the fsync that makes it last. A failed fsync ends the
process: the kernel marks the pages clean, so a second fsync would succeed
without the data.
"""

import errno
import fcntl
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from shoal.errors import DiskFull, InvalidRequest, NotSupported, ShoalError

EXIT_FSYNC_FAILED = 74
"""Exit status (EX_IOERR) of a process that a failed fsync ended."""

_log = logging.getLogger(__name__)
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TEMPORARY = ".tmp-"
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_-.")
_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


def escape(name: str) -> str:
    """One safe file name for a name like "collections/papers".

    Upper-case letters and slashes become %XX, so that names stay apart on file
    systems that fold case.

    Raises:
        InvalidRequest: a part between slashes is empty, begins with a dot, has
            other characters than letters, digits, "_", "-" and ".", or the whole
            is too long for a file name.
    """
    for part in name.split("/"):
        if not part or part.startswith(".") or not set(part) <= _PLAIN | _LETTERS:
            raise InvalidRequest(f"{name[:80]!r} is no storage name", field="name")
    escaped = "".join(c if c in _PLAIN else f"%{ord(c):02x}" for c in name)
    if len(escaped) > 200:
        raise InvalidRequest(f"storage name {name[:80]!r}... is too long", field="name")
    return escaped


def unescape(escaped: str) -> str:
    """The name that `escape` was given."""
    head, *rest = escaped.split("%")
    return head + "".join(chr(int(part[:2], 16)) + part[2:] for part in rest)


@contextmanager
def typed_errors(what: str) -> Iterator[None]:
    """Turns a full disk and read-only media into Shoal's errors.

    Raises:
        DiskFull: no room (or over a quota or file size limit).
        NotSupported: the media is read-only.
    """
    try:
        yield
    except OSError as error:
        raise as_typed(error, what) from error


def as_typed(error: OSError, what: str) -> ShoalError | OSError:
    """The typed error for an OSError; the OSError itself where there is none."""
    if error.errno in _FULL:
        return DiskFull(f"no room for {what}: {os.strerror(error.errno)}")
    if error.errno == errno.EROFS:
        return NotSupported(f"the storage is read-only, so {what} cannot be written")
    return error


def fsync(descriptor: int, what: str, *, data_only: bool = False) -> None:
    """Makes a file's (or folder's) bytes durable, or ends the process.

    Args:
        descriptor: an open file or folder.
        what: its name, for the log line.
        data_only: fdatasync, which skips times and such.
    """
    try:
        if data_only:
            os.fdatasync(descriptor)
        else:
            os.fsync(descriptor)
    except OSError as error:
        end_process(f"fsync of {what}", error)


def end_process(what: str, error: OSError) -> NoReturn:
    """Ends the process at once: what the disk holds is not known any more."""
    _log.critical("%s failed (%s): the process ends, nothing is acknowledged", what, error)
    for handler in logging.getLogger("shoal").handlers + logging.getLogger().handlers:
        with suppress(Exception):
            handler.flush()
    os._exit(EXIT_FSYNC_FAILED)


def fsync_folder(path: str) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fsync(descriptor, path)
    finally:
        os.close(descriptor)


def make_folder(path: str) -> None:
    """Makes a folder and those above it, durably; what exists is left alone."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    if parent:
        make_folder(parent)
    with suppress(FileExistsError):
        os.mkdir(path)
    fsync_folder(parent or ".")


def write_all(descriptor: int, data: bytes, offset: int) -> None:
    """Writes all of the data at an offset."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


@contextmanager
def temporary(folder: str, data: bytes) -> Iterator[str]:
    """A durable file with the data, under a temporary name, removed at the end.

    It is locked meanwhile, so that `remove_stale` of another process leaves it.
    """
    path, descriptor = _create_locked(folder)
    try:
        write_all(descriptor, data, 0)
        fsync(descriptor, path)
        yield path
    finally:
        with suppress(FileNotFoundError):
            os.unlink(path)
        os.close(descriptor)


def _create_locked(folder: str) -> tuple[str, int]:
    while True:
        path = os.path.join(folder, _TEMPORARY + uuid.uuid4().hex)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Another process's remove_stale may have come between the two calls.
        if os.fstat(descriptor).st_nlink:
            return path, descriptor
        os.close(descriptor)


def publish(folder: str, name: str, data: bytes) -> bool:
    """Makes a file durable under a name that nobody holds yet.

    Returns:
        False if the name was taken; then nothing changed.
    """
    with temporary(folder, data) as path:
        try:
            os.link(path, os.path.join(folder, name))
        except FileExistsError:
            return False
    fsync_folder(folder)
    return True


def replace(folder: str, name: str, data: bytes) -> None:
    """Makes a file durable under a name, whoever held it."""
    with temporary(folder, data) as path:
        os.replace(path, os.path.join(folder, name))
    fsync_folder(folder)


def lock(path: str) -> int | None:
    """Locks a file or folder for this process.

    Returns:
        A descriptor that holds the lock until it is closed; None if another holds
        it or nothing is there.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def remove_stale(folder: str, prefix: str = _TEMPORARY) -> None:
    """Removes what dead processes left under temporary names."""
    for name in os.listdir(folder):
        if not name.startswith(prefix):
            continue
        path = os.path.join(folder, name)
        descriptor = lock(path)
        if descriptor is None:
            continue
        if os.path.isdir(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(FileNotFoundError):
                os.unlink(path)
        os.close(descriptor)


def remove_folder(path: str) -> None:
    """Removes a folder so that no half of it is ever seen under its name."""
    parent = os.path.dirname(path)
    doomed = os.path.join(parent, _TEMPORARY + uuid.uuid4().hex)
    try:
        os.rename(path, doomed)
    except FileNotFoundError:
        return
    fsync_folder(parent)
    shutil.rmtree(doomed, ignore_errors=True)
