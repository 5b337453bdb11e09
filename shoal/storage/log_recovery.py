"""Taking a log over: raise the epoch, read to the end, settle what is lost, seal."""

import logging
import os
from collections.abc import Sequence
from contextlib import suppress

from shoal.errors import LossMismatch, SupersededWriter
from shoal.storage import files
from shoal.storage.log_folder import EpochState, FilePart, LogFolder, LogReading, corrupt
from shoal.storage.recovery import Range, loss_name
from shoal.types import ShardRef

_log = logging.getLogger(__name__)


def superseded(shard: ShardRef, epoch: int, why: str) -> SupersededWriter:
    """The error of a writer whose epoch does not own the log."""
    return SupersededWriter(
        f"epoch {epoch} may not write the log of shard {shard.shard}: {why}",
        shard=shard.shard,
        writer_epoch=epoch,
    )


def check_newest(folder: LogFolder, epoch: int) -> None:
    """Raises SupersededWriter unless the epoch owns the log."""
    newest = max(folder.epochs(), default=0)
    if newest > epoch:
        raise superseded(folder.shard, epoch, f"epoch {newest} owns it")
    if newest < epoch:
        raise superseded(folder.shard, epoch, "the log was dropped")


def claim(folder: LogFolder, epoch: int) -> int:
    """Durably raises the epoch; the descriptor holds it against its like."""
    newest = max(folder.epochs(), default=0)
    if newest > epoch:
        raise superseded(folder.shard, epoch, f"epoch {newest} owns it")
    path = folder.epoch_path(epoch)
    with suppress(FileExistsError):
        os.mkdir(path)
    files.fsync_folder(folder.path)
    held = files.lock(path)
    if held is None:
        raise superseded(folder.shard, epoch, "another process holds this epoch")
    return held


def recover(folder: LogFolder, epoch: int, accept_loss: str) -> LogReading:
    """Reads the log to its end and seals every epoch below this one."""
    while True:
        _settle(folder)
        reading = folder.read()
        lost = given_up(folder, reading, accept_loss)
        if lost:
            folder.accept(accept_loss, lost)
            _log.error("loss %s accepted: log entries %s are gone", accept_loss, lost)
            reading = accepting(reading, lost)
        old = [state for state in reading.epochs if state.epoch < epoch]
        if all(state.sealed or folder.put_seal(state) for state in old):
            break
        # Another writer sealed an epoch first, perhaps further on: read again.
    for state in old:
        if not state.sealed:
            trim(folder, state)
        if not state.parts:
            files.remove_folder(folder.epoch_path(state.epoch))
    return reading


def _settle(folder: LogFolder) -> None:
    """Makes what unsealed files hold durable, and lets the page cache go: after a
    failed fsync of a dead writer, cached pages may differ from the disk.
    """
    for epoch in folder.epochs():
        if folder.seal(epoch) is not None:
            continue
        for file in folder.log_files(epoch):
            descriptor = os.open(folder.file_path(file), os.O_RDONLY | os.O_CLOEXEC)
            try:
                files.fsync(descriptor, folder.file_path(file))
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def given_up(folder: LogFolder, reading: LogReading, accept_loss: str) -> tuple[Range, ...]:
    """What is to be given up now, after checking that the operator named it."""
    name = loss_name(folder.shard, reading.lost) if reading.lost else ""
    if accept_loss in {"", name} or accept_loss in folder.accepted():
        if reading.lost and accept_loss != name:
            raise corrupt(folder.shard, reading.lost)
        return reading.lost
    raise LossMismatch(
        f"shard {folder.shard.shard} has "
        + (f"the loss {name}" if name else "no loss")
        + f", not {accept_loss[:80]!r}",
        loss=name,
    )


def accepting(reading: LogReading, lost: Sequence[Range]) -> LogReading:
    """The reading once a loss is given up."""
    accepted = tuple(sorted({*reading.accepted, *lost}))
    return LogReading(reading.epochs, reading.last, reading.durable, accepted, ())


def trim(folder: LogFolder, state: EpochState) -> None:
    """Keeps a copy of a torn tail and frees what lies beyond what counts."""
    for part in state.parts[-1:]:
        if state.reading.torn_bytes:
            _keep_torn(folder, part, state)
        with suppress(FileNotFoundError):
            os.truncate(folder.file_path(part.file), part.length)


def _keep_torn(folder: LogFolder, part: FilePart, state: EpochState) -> None:
    torn = folder.load(part.file)[part.length :].rstrip(b"\0")
    target = os.path.join(folder.path, "torn")
    files.make_folder(target)
    name = f"{part.file.epoch:020d}-{part.file.first:020d}-{part.length}.torn"
    files.replace(target, name, torn)
    _log.warning(
        "torn tail of the log of shard %d, epoch %d: %d bytes (%d whole entries) that were "
        "never acknowledged are cut after entry %d; a copy is in %s",
        folder.shard.shard,
        state.epoch,
        state.reading.torn_bytes,
        state.reading.torn_entries,
        state.reading.last,
        os.path.join(target, name),
    )
