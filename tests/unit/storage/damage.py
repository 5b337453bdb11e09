"""Helpers to look into a data directory and to damage it."""

import os
from pathlib import Path
from typing import Any

from shoal.storage.log import DirectoryLogs
from shoal.storage.ports import Log
from shoal.types import ShardRef

SHARD = ShardRef("0123456789abcdef" * 2, 3, 1)


def log_folder(data: Path, shard: ShardRef = SHARD) -> Path:
    return data / "logs" / f"{shard.collection}-{shard.generation}-{shard.shard}"


def log_files(data: Path, shard: ShardRef = SHARD) -> list[Path]:
    return sorted(log_folder(data, shard).glob("epoch-*/*.log"))


def flip(path: Path, offset: int, mask: int = 0xFF) -> None:
    with path.open("r+b") as stream:
        stream.seek(offset)
        value = stream.read(1)[0]
        stream.seek(offset)
        stream.write(bytes([value ^ mask]))


def crash(log: Log) -> None:
    """Lets a writer's lock go as its process's death would, without a marker."""
    os.close(log._held)  # type: ignore[attr-defined]


def contents(opened: Any, after: int = 0) -> dict[int, bytes]:
    return {entry.sequence: entry.payload for entry in opened.entries(after)}


def write(logs: DirectoryLogs, batches: list[list[bytes]], epoch: int = 1) -> None:
    """Acknowledges the batches, then closes the log."""
    opened = logs.open(SHARD, epoch)
    for batch in batches:
        opened.append(batch)
    opened.close()
