"""An array that grows at its end while older views of it stay as they were."""

from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

Scalar = TypeVar("Scalar", bound=np.generic)


class Growable(Generic[Scalar]):
    """Rows are only ever added: a view of the first n rows never changes.

    Costs amortised O(1) per row: room doubles when it is full.
    """

    def __init__(self, dtype: DTypeLike, shape: tuple[int, ...] = ()) -> None:
        """Begins empty; `shape` is that of one row."""
        self._data: NDArray[Any] = np.empty((64, *shape), dtype=dtype)
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def extend(self, rows: NDArray[Any]) -> None:
        """Adds rows, converted to the array's dtype."""
        needed = self._length + len(rows)
        if needed > len(self._data):
            room = max(needed, 2 * len(self._data))
            grown = np.empty((room, *self._data.shape[1:]), dtype=self._data.dtype)
            grown[: self._length] = self._data[: self._length]
            self._data = grown
        self._data[self._length : needed] = rows
        self._length = needed

    def view(self) -> NDArray[Scalar]:
        """All rows so far, without a copy."""
        return self._data[: self._length]
