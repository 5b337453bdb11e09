"""What the service asks of an engine that runs a model."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shoal.types import Float32Matrix

TokenIds = NDArray[np.int32]


class Backend(Protocol):
    """Runs one model. Called from one thread at a time."""

    @property
    def precision(self) -> str:
        """One of "fp32", "bf16", "fp16"."""

    @property
    def device(self) -> str:
        """Either "cpu" or "cuda:N"."""

    def encode(self, texts: Sequence[TokenIds], length: int) -> Float32Matrix:
        """Runs the model, with pooling and projection, without normalising.

        Args:
            texts: token ids of each text, special ones included, 1 to `length`.
            length: what each text is padded to.

        Returns:
            float32[len(texts), dim].
        """
