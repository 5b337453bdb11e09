"""Token vectors as a centroid and residual words, all in fixed point.

Everything after the rounding of a vector is integer arithmetic, so codes and similarities do not
depend on the processor, on the number of threads, or on what else was in the batch. Products of
integers whose sums stay below 2**53 are exact in a float64 matrix product, in any order.

Source: Jegou, Douze and Schmid, Product quantization for nearest neighbor search (2011), section
4; DESIGN, section 10.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shoal.kernels import maxsim
from shoal.kernels.maxsim import WORDS, Tables
from shoal.types import Float32Matrix

Fixed = NDArray[np.int16]

ONE = 1 << 14
"""The number 1 in fixed point: entries lie within (-2, 2)."""
LARGEST = 32_767
FACTOR_BITS = 32
_MAGIC = b"SHOALCDC"
_VERSION = 1
_HEADER = struct.Struct("<8sIIIII")
_BATCH_ELEMENTS = 1 << 22


@dataclass(frozen=True, slots=True)
class Codes:
    """Encoded tokens.

    Attributes:
        centroids: uint16[tokens].
        words: uint8[tokens, M].
    """

    centroids: NDArray[np.uint16]
    words: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Codec:
    """An immutable quantiser of unit vectors.

    Attributes:
        centroids: int16[K, dim], K 1 to 65,536.
        words: int16[M, 256, dim / M], residual words of each subspace; M 0 or more.
    """

    centroids: Fixed
    words: Fixed

    @property
    def dim(self) -> int:
        """Columns of a token vector."""
        return int(self.centroids.shape[1])

    @property
    def subspaces(self) -> int:
        """M, the residual bytes of a token."""
        return len(self.words)

    @property
    def name(self) -> str:
        """64 hex digits: the hash of its bytes."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @property
    def factor(self) -> int:
        """Similarities are (integer dot product · factor) >> 32, rounded to nearest.

        The largest such that no sum of one centroid's and M words' similarities to a unit
        query can leave 16 bits: by Cauchy and Schwarz |S| <= |c| and the sum over j of
        max |T_j| <= sum of |q_j|·R_j <= sqrt(sum of R_j²) for |q| = 1, with R_j the
        longest word of subspace j. Rounding q to fixed point adds sqrt(dim) / 2 steps to
        |q| at most, rounding the M + 1 entries one half each.
        """
        longest = math.sqrt(float(_squares(self.centroids).max()))
        if self.subspaces:
            radii = _squares(self.words.reshape(-1, self.words.shape[2]))
            longest += math.sqrt(float(radii.reshape(self.subspaces, WORDS).max(axis=1).sum()))
        query = ONE + math.sqrt(self.dim) / 2
        room = LARGEST - (self.subspaces + 1)
        # A float's relative error is far below the slack of one part in a million.
        factor = int(room * (1 << FACTOR_BITS) / (query * max(1.0, longest) * (1 + 1e-6)))
        return min(factor, (1 << FACTOR_BITS) - 1)

    def encode(self, vectors: Float32Matrix) -> Codes:
        """The nearest centroid of each vector, and the nearest word of each part of the rest.

        Args:
            vectors: float32[tokens, dim], finite, of length 1 or less.

        Returns:
            Codes that depend on each vector alone; of equals the first is taken.
        """
        fixed = to_fixed(vectors)
        step = max(1, _BATCH_ELEMENTS // len(self.centroids))
        parts = [self._encode(fixed[at : at + step]) for at in range(0, len(fixed), step)]
        return Codes(
            np.concatenate([np.empty(0, np.uint16), *(part.centroids for part in parts)]),
            np.concatenate(
                [np.empty((0, self.subspaces), np.uint8), *(part.words for part in parts)]
            ),
        )

    def _encode(self, fixed: Fixed) -> Codes:
        nearest = _nearest(fixed, self.centroids[np.newaxis])[:, 0].astype(np.uint16)
        if not self.subspaces:
            return Codes(nearest, np.empty((len(fixed), 0), np.uint8))
        rest = fixed.astype(np.int32) - self.centroids[nearest]
        return Codes(nearest, _nearest(rest, self.words).astype(np.uint8))

    def decode(self, codes: Codes) -> Float32Matrix:
        """float32[tokens, dim]: what the codes stand for."""
        fixed = self.centroids[codes.centroids].astype(np.int32)
        if self.subspaces:
            chosen = self.words[np.arange(self.subspaces), codes.words]
            fixed += chosen.reshape(fixed.shape)
        vectors: Float32Matrix = (fixed / ONE).astype(np.float32)
        return vectors

    def tables(self, query: Fixed) -> Tables:
        """A query's similarities.

        Args:
            query: int16[tokens, dim], `to_fixed` of unit vectors, 1 token or more.

        Raises:
            ValueError: no token, or one that is longer than 1, so that sums might not fit.
        """
        longest = ONE + math.sqrt(self.dim) / 2
        if not len(query) or _squares(query).max() > longest * longest:
            raise ValueError("a query has 1 token or more, none of them longer than 1")
        centroids = maxsim.tables(query, self.centroids[np.newaxis], self.factor)
        empty = np.empty((len(centroids), 0, WORDS, maxsim.LANES), np.int16)
        words = maxsim.tables(query, self.words, self.factor) if self.subspaces else empty
        return Tables(len(query), centroids, words)

    def to_bytes(self) -> bytes:
        """The artefact: header, centroids, words, and the hash of it all."""
        count, dim = self.centroids.shape
        header = _HEADER.pack(_MAGIC, _VERSION, count, dim, self.subspaces, WORDS)
        body = header + self.centroids.astype("<i2").tobytes() + self.words.astype("<i2").tobytes()
        return body + hashlib.sha256(body).digest()


def from_bytes(data: bytes) -> Codec:
    """Reads an artefact.

    Raises:
        ValueError: it is damaged, of another version, or none.
    """
    body, digest = data[:-32], data[-32:]
    if len(data) < _HEADER.size + 32 or hashlib.sha256(body).digest() != digest:
        raise ValueError("the codec's bytes are damaged")
    magic, version, count, dim, subspaces, words = _HEADER.unpack_from(body)
    if magic != _MAGIC or version != _VERSION or words != WORDS:
        raise ValueError(f"no codec of version {_VERSION}")
    numbers = np.frombuffer(body, "<i2", offset=_HEADER.size).astype(np.int16)
    return codec(
        numbers[: count * dim].reshape(count, dim),
        numbers[count * dim :].reshape(subspaces, WORDS, dim // subspaces if subspaces else 0),
    )


def codec(centroids: Fixed, words: Fixed) -> Codec:
    """A codec, checked.

    Raises:
        ValueError: the residual bytes do not divide the dim, or shapes do not fit.
    """
    count, dim = centroids.shape
    subspaces = len(words)
    check_subspaces(dim, subspaces)
    if count < 1 or (subspaces and words.shape[1:] != (WORDS, dim // subspaces)):
        raise ValueError(f"centroids {centroids.shape} and words {words.shape} do not fit")
    return Codec(np.ascontiguousarray(centroids), np.ascontiguousarray(words))


def check_subspaces(dim: int, subspaces: int) -> None:
    """Raises ValueError if a token of so many columns cannot have so many residual bytes."""
    if subspaces and dim % subspaces:
        fitting = [str(each) for each in (4, 8, 16, 32) if dim % each == 0]
        raise ValueError(
            f"{subspaces} code bytes do not divide {dim} columns; use {', '.join(fitting)}"
        )


def to_fixed(vectors: NDArray[np.float32] | NDArray[np.float64]) -> Fixed:
    """Rounds to fixed point, halves to even.

    Raises:
        ValueError: a number is not finite, or not within (-2, 2).
    """
    scaled = np.rint(vectors.astype(np.float64) * ONE)
    if not (np.abs(scaled) < 2 * ONE).all():
        raise ValueError("a token vector holds NaN, infinity, or a number beyond 2")
    return scaled.astype(np.int16)


def _squares(rows: NDArray[np.integer]) -> NDArray[np.int64]:
    squares: NDArray[np.int64] = np.square(rows.astype(np.int64)).sum(axis=1)
    return squares


def _nearest(rows: NDArray[np.integer], centres: Fixed) -> NDArray[np.integer]:
    """[rows, groups]: the nearest centre of each group, the first of equals; exact.

    Args:
        rows: [rows, groups x part] integers.
        centres: int16[groups, count, part].
    """
    groups, _, part = centres.shape
    parts = _squares(rows.reshape(-1, part)).max(initial=0)
    longest = _squares(centres.reshape(-1, part)).max()
    if 2 * math.isqrt(int(parts)) * math.isqrt(int(longest)) + longest < 1 << 30:
        return maxsim.nearest(np.ascontiguousarray(rows, dtype=np.int16), centres)
    # Vectors this long are met where one centroid stands for opposite tokens.
    found = np.empty((len(rows), groups), np.int64)
    for group, centre in enumerate(centres):
        mine = rows[:, group * part : (group + 1) * part].astype(np.float64)
        found[:, group] = (2 * mine @ centre.T.astype(np.float64) - _squares(centre)).argmax(axis=1)
    return found
