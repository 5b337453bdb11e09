"""Arrays as files: a 64-byte header, then the elements; read memory-mapped."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.errors import CorruptSegment
from shoal.types import ShardRef

_MAGIC = b"SHOALCOL"
_VERSION = 1
_HEADER = struct.Struct("<8sI16sQI4sIQ8x")
"""Magic, format version, collection, generation, shard, dtype, columns, rows."""
_DTYPES = {
    name: np.dtype(name) for name in ("|u1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f4", "<f8")
}


class ColumnFiles:
    """The array files of one shard's folder."""

    def __init__(self, ref: ShardRef, folder: str) -> None:
        self._ref, self._folder = ref, folder

    def path(self, name: str) -> str:
        """Where a column lies."""
        return os.path.join(self._folder, name)

    def write(self, name: str, array: NDArray[Any]) -> None:
        """Writes a 1-D or 2-D array."""
        self.write_parts(name, [array])

    def write_parts(self, name: str, parts: Iterable[NDArray[Any]]) -> None:
        """Writes arrays, at least one, one after the other as one array."""
        rows, last = 0, None
        with open(self.path(name), "wb") as stream:
            stream.seek(_HEADER.size)
            for part in parts:
                stream.write(np.ascontiguousarray(part).data)
                rows, last = rows + len(part), part
            assert last is not None
            stream.seek(0)
            stream.write(self._header(last, rows))

    def _header(self, array: NDArray[Any], rows: int) -> bytes:
        columns = array.shape[1] if array.ndim == 2 else 0
        dtype = array.dtype.str.encode()
        ref = self._ref
        return _HEADER.pack(
            _MAGIC,
            _VERSION,
            bytes.fromhex(ref.collection),
            ref.generation,
            ref.shard,
            dtype,
            columns,
            rows,
        )

    def read(self, name: str) -> NDArray[Any]:
        """Maps an array, read-only.

        Raises:
            CorruptSegment: another shard's file, or none of this format.
        """
        path = self.path(name)
        with open(path, "rb") as stream:
            head = stream.read(_HEADER.size)
        if len(head) < _HEADER.size:
            raise CorruptSegment(f"segment file {name} is too short", file=name)
        magic, version, collection, generation, shard, dtype, columns, rows = _HEADER.unpack(head)
        if (magic, version) != (_MAGIC, _VERSION):
            raise CorruptSegment(f"segment file {name} has another format", file=name)
        if ShardRef(collection.hex(), generation, shard) != self._ref:
            raise CorruptSegment(f"segment file {name} belongs to another shard", file=name)
        shape = (rows, columns) if columns else (rows,)
        kind = _DTYPES[dtype.rstrip(b"\0").decode()]
        if not rows:
            return np.empty(shape, dtype=kind)
        mapped = np.memmap(path, kind, "r", offset=_HEADER.size, shape=shape)
        return mapped.view(np.ndarray)
