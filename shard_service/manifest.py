"""The list of a shard's segments, as JSON in the catalog."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from shoal.errors import CorruptSegment
from shoal.storage.ports import FileEntry

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class SegmentEntry:
    """One segment.

    Attributes:
        name: unique within the shard.
        files: every file of its folder.
        index: FAISS factory string.
        parameters: search parameters by name.
        recall: recall@10 measured when it was built.
        max_norm: at least the length of every vector.
    """

    name: str
    files: tuple[FileEntry, ...]
    index: str
    parameters: dict[str, int]
    recall: float
    max_norm: float


@dataclass(frozen=True, slots=True)
class MasksEntry:
    """The folder that says which documents of the segments are dead; one file each."""

    name: str
    files: tuple[FileEntry, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a shard holds up to a position; what came later is in the log.

    Attributes:
        writer_epoch: who wrote it.
        position: every write up to this sequence number is in the segments and masks.
        segments: oldest first.
        masks: dead documents; None when there are none.
    """

    writer_epoch: int = 0
    position: int = 0
    segments: tuple[SegmentEntry, ...] = ()
    masks: MasksEntry | None = None


def encode(manifest: Manifest) -> bytes:
    """JSON, UTF-8."""
    return json.dumps({"format": _FORMAT, **asdict(manifest)}, indent=1).encode()


def decode(data: bytes) -> Manifest:
    """Reads what `encode` wrote; no bytes are the manifest of a new shard.

    Raises:
        CorruptSegment: it is none.
    """
    if not data:
        return Manifest()
    try:
        fields = json.loads(data)
        if fields["format"] != _FORMAT:
            raise CorruptSegment(f"the manifest has format {fields['format']}, not {_FORMAT}")
        masks = fields["masks"]
        return Manifest(
            fields["writer_epoch"],
            fields["position"],
            tuple(_segment(one) for one in fields["segments"]),
            None if masks is None else MasksEntry(masks["name"], _files(masks["files"])),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptSegment(f"the shard's manifest is damaged: {error}") from error


def _segment(fields: dict[str, Any]) -> SegmentEntry:
    return SegmentEntry(
        fields["name"],
        _files(fields["files"]),
        fields["index"],
        fields["parameters"],
        fields["recall"],
        fields["max_norm"],
    )


def _files(entries: list[dict[str, Any]]) -> tuple[FileEntry, ...]:
    return tuple(FileEntry(one["name"], one["size"], one["crc32c"]) for one in entries)
