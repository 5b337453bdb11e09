"""What the ranking kernel reads of a source of documents."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shoal.types import Float32Matrix, Float64Vector


class Documents(Protocol):
    """Documents and their rows as columns, all in C order."""

    @property
    def vectors(self) -> Float32Matrix:
        """[rows, dim] float32."""

    @property
    def squares(self) -> Float64Vector:
        """[rows] float64, `squares(vectors)`."""

    @property
    def row_documents(self) -> NDArray[np.int32]:
        """[rows] int32, number of each row's document."""

    @property
    def row_starts(self) -> NDArray[np.int64]:
        """[documents + 1] int64, first row of each document."""

    @property
    def ids(self) -> NDArray[np.uint8]:
        """Id bytes of all documents, one after the other."""

    @property
    def id_starts(self) -> NDArray[np.int64]:
        """[documents + 1] int64, where each id begins in `ids`."""

    @property
    def sequences(self) -> NDArray[np.uint64]:
        """[documents] uint64."""
