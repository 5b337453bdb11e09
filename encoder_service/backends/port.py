"""What the service asks of an engine that runs a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shoal.types import Float32Matrix

TokenIds = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class ModelInput:
    """A text as a model reads it.

    Attributes:
        ids: int32[n], special tokens included.
        attended: the first so many tokens are seen by the others; the rest only look.
        kept: bool[n], which tokens give a vector; None where all are pooled into one.
    """

    ids: TokenIds
    attended: int
    kept: NDArray[np.bool_] | None = None


class Backend(Protocol):
    """Runs one model. Called from one thread at a time."""

    @property
    def precision(self) -> str:
        """One of "fp32", "bf16", "fp16"."""

    @property
    def device(self) -> str:
        """Either "cpu" or "cuda:N"."""

    def encode(self, texts: Sequence[ModelInput], length: int) -> list[Float32Matrix]:
        """Runs the model, with pooling and projection, without normalising.

        Args:
            texts: each of 1 to `length` tokens.
            length: what each text is padded to.

        Returns:
            Of each text float32[rows, dim]: one row, or one for each token that is kept.
        """
