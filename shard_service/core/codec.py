"""Token vectors as a centroid, residual words and a length, all in fixed point.

The rest of a token, seen from its centroid, is rotated so that its subspaces carry about as much,
and each part is replaced by the nearest of 256 words. What a token stands for is shorter than it
was, the more so the worse it fits: one byte scales its similarities back to length 1.

Everything after the rounding of a vector is integer arithmetic, so codes and similarities do not
depend on the processor, on the number of threads, or on what else was in the batch. Products of
integers whose sums stay below 2**53 are exact in a float64 matrix product, in any order.

Sources: Jegou, Douze and Schmid, Product quantization for nearest neighbor search (2011),
section 4; Ge, He, Ke and Sun, Optimized product quantization (2013), for the rotation; DESIGN,
section 10.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from shoal.kernels import maxsim
from shoal.kernels.fixed import ONE, Fixed, longest_square, squares, to_fixed
from shoal.kernels.maxsim import NORM_LEAST, NORM_STEP, WORDS, Tables
from shoal.types import Float32Matrix

LARGEST = 32_767
FACTOR_BITS = 32
NORM_ONE = 1 << 14
"""Factor of a token whose code has length 1: a similarity's unit is half of the sum's."""
_MAGIC = b"SHOALCDC"
_VERSION = 2
_HEADER = struct.Struct("<8sIIIIIQQ")
"""Magic, version, centroids, dim, residual bytes, words of each, factor, far square."""
_BATCH_ELEMENTS = 1 << 22


@dataclass(frozen=True, slots=True)
class Codes:
    """Encoded tokens.

    Attributes:
        centroids: uint16[tokens].
        words: uint8[tokens, M].
        norms: uint8[tokens], see `shoal.kernels.token_runs.CodedRuns`.
    """

    centroids: NDArray[np.uint16]
    words: NDArray[np.uint8]
    norms: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Codec:
    """An immutable quantiser of unit vectors. See `codec` for one that is checked.

    Attributes:
        centroids: int16[K, dim], K 1 to 65,536.
        rotation: int16[dim, dim], what rests are multiplied by; orthonormal but for rounding.
        words: int16[M, 256, dim / M], words of each part of a rotated rest; M 1 or more.
        factor: similarities are (integer dot product · factor) >> 32, rounded to nearest; a
            power of two, so that what 1 is worth is one too.
        far_square: squared distance from its centroid beyond which a token is far.
    """

    centroids: Fixed
    rotation: Fixed
    words: Fixed
    factor: int
    far_square: int

    @property
    def dim(self) -> int:
        """Columns of a token vector."""
        return int(self.centroids.shape[1])

    @property
    def subspaces(self) -> int:
        """M, the residual bytes of a token."""
        return len(self.words)

    @property
    def unit(self) -> float:
        """What 1 in a token's similarity is worth: a power of two."""
        return float(1 << FACTOR_BITS) * (1 << 15) / NORM_ONE / self.factor / ONE / ONE

    @cached_property
    def name(self) -> str:
        """64 hex digits: the hash of its bytes."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @cached_property
    def _rotated_centroids(self) -> NDArray[np.int32]:
        return rotated(self.centroids, self.rotation).astype(np.int32)

    def encode(self, vectors: Float32Matrix) -> Codes:
        """The nearest centroid of each vector, the nearest word of each part of the rest, and
        what makes its length 1 again.

        Args:
            vectors: float32[tokens, dim], finite, of length 1 or less.

        Returns:
            Codes that depend on each vector alone; of equals the first is taken.
        """
        step = max(1, _BATCH_ELEMENTS // len(self.centroids))
        # Rounded batch by batch: a batch stays in the cache, all vectors would not.
        parts = [
            self._encode(to_fixed(vectors[at : at + step])) for at in range(0, len(vectors), step)
        ]
        none = Codes(
            np.empty(0, np.uint16),
            np.empty((0, self.subspaces), np.uint8),
            np.empty(0, np.uint8),
        )
        every = [none, *parts]
        return Codes(
            np.concatenate([part.centroids for part in every]),
            np.concatenate([part.words for part in every]),
            np.concatenate([part.norms for part in every]),
        )

    def far(self, vectors: Float32Matrix, centroids: NDArray[np.uint16]) -> int:
        """How many vectors are farther from their centroid than three in four of the tokens
        that the codec was trained on.

        Args:
            vectors: float32[tokens, dim], as they were encoded.
            centroids: uint16[tokens], from `encode`.
        """
        rest = to_fixed(vectors).astype(np.int32) - self.centroids[centroids]
        return int((squares(rest) > self.far_square).sum())

    def _encode(self, fixed: Fixed) -> Codes:
        nearest = _nearest(fixed, self.centroids[np.newaxis])[:, 0].astype(np.uint16)
        rest = fixed.astype(np.int32) - self.centroids[nearest]
        words = _nearest(rotated(rest, self.rotation), self.words).astype(np.uint8)
        norms = norms_of(self._stands_for(nearest, words))
        return Codes(nearest, words, norms)

    def _stands_for(
        self, centroids: NDArray[np.uint16], words: NDArray[np.uint8]
    ) -> NDArray[np.int32]:
        """[tokens, dim]: what codes stand for, rotated, before it is scaled."""
        chosen = self.words[np.arange(self.subspaces), words].reshape(len(words), self.dim)
        return self._rotated_centroids[centroids] + chosen

    def decode(self, codes: Codes) -> Float32Matrix:
        """float32[tokens, dim]: what the codes stand for."""
        turned = self._stands_for(codes.centroids, codes.words) / ONE
        scale = (NORM_LEAST + NORM_STEP * codes.norms.astype(np.float64)) / NORM_ONE
        vectors = (turned * scale[:, np.newaxis]) @ (self.rotation / ONE)
        decoded: Float32Matrix = vectors.astype(np.float32)
        return decoded

    def tables(self, query: Fixed) -> Tables:
        """A query's similarities, before they are scaled.

        Args:
            query: int16[tokens, dim], `to_fixed` of unit vectors, 1 token or more.

        Raises:
            ValueError: no token, or one that is longer than 1, so that sums might not fit.
        """
        if not len(query) or squares(query).max() > longest_square(self.dim):
            raise ValueError("a query has 1 token or more, none of them longer than 1")
        return Tables(
            len(query),
            maxsim.tables(query, self.centroids[np.newaxis], self.factor),
            maxsim.tables(rotated(query, self.rotation), self.words, self.factor),
        )

    def to_bytes(self) -> bytes:
        """The artefact: header, centroids, rotation, words, and the hash of it all."""
        count, dim = self.centroids.shape
        header = _HEADER.pack(
            _MAGIC, _VERSION, count, dim, self.subspaces, WORDS, self.factor, self.far_square
        )
        arrays = (self.centroids, self.rotation, self.words)
        body = b"".join([header, *(array.astype("<i2").tobytes() for array in arrays)])
        return body + hashlib.sha256(body).digest()


def from_bytes(data: bytes) -> Codec:
    """Reads an artefact.

    Raises:
        ValueError: it is damaged, of another version, or none.
    """
    body, digest = data[:-32], data[-32:]
    if len(data) < _HEADER.size + 32 or hashlib.sha256(body).digest() != digest:
        raise ValueError("the codec's bytes are damaged")
    magic, version, count, dim, subspaces, words, factor, far = _HEADER.unpack_from(body)
    if magic != _MAGIC or version != _VERSION or words != WORDS:
        raise ValueError(f"no codec of version {_VERSION}")
    check_subspaces(dim, subspaces)
    numbers = np.frombuffer(body, "<i2", offset=_HEADER.size).astype(np.int16)
    centroids, rotation, rest = np.split(numbers, np.cumsum([count * dim, dim * dim]))
    return codec(
        centroids.reshape(count, dim),
        rotation.reshape(dim, dim),
        rest.reshape(subspaces, WORDS, dim // subspaces),
        far_square=far,
        factor=factor,
    )


def codec(
    centroids: Fixed,
    rotation: Fixed,
    words: Fixed,
    far_square: int = 0,
    factor: int | None = None,
) -> Codec:
    """A codec, checked.

    Args:
        centroids: see `Codec`, as are the others.
        rotation: of rests.
        words: of each part.
        far_square: of the sample.
        factor: as stored; None takes the largest power of two that is safe.

    Raises:
        ValueError: the residual bytes do not divide the dim, shapes do not fit, or sums of
            similarities might leave 16 bits.
    """
    count, dim = centroids.shape
    subspaces = len(words)
    check_subspaces(dim, subspaces)
    if count < 1 or rotation.shape != (dim, dim) or words.shape[1:] != (WORDS, dim // subspaces):
        raise ValueError(f"{centroids.shape}, {rotation.shape}, {words.shape} do not fit")
    largest = _largest_factor(centroids, rotation, words)
    chosen = 1 << (largest.bit_length() - 1) if factor is None else factor
    if not 0 < chosen <= largest or chosen & (chosen - 1):
        raise ValueError(f"factor {chosen} is no power of two up to {largest}")
    return Codec(
        np.ascontiguousarray(centroids),
        np.ascontiguousarray(rotation),
        np.ascontiguousarray(words),
        chosen,
        far_square,
    )


def _largest_factor(centroids: Fixed, rotation: Fixed, words: Fixed) -> int:
    """The largest factor with which no partial sum of similarities can leave 16 bits.

    By Cauchy and Schwarz |S| <= |q|·|c|, and the sum over j of max |T_j| is at most the sum of
    |r_j|·R_j <= |r|·sqrt(sum of R_j²), with R_j the longest word of subspace j and r the query
    rotated, which is at most as much longer than q as the rotation's largest singular value
    says. Rounding a vector to fixed point adds sqrt(dim) / 2 steps to its length at most,
    rounding the M + 1 entries one half each.
    """
    dim, subspaces = centroids.shape[1], len(words)
    query = math.sqrt(longest_square(dim))
    turned = query * float(np.linalg.norm(rotation / ONE, 2)) + math.sqrt(dim) / 2
    radii = squares(words.reshape(-1, words.shape[2])).reshape(subspaces, WORDS).max(axis=1)
    longest = query * math.sqrt(float(squares(centroids).max()))
    longest += turned * math.sqrt(float(radii.sum()))
    room = LARGEST - (subspaces + 1)
    # A float's relative error is far below the slack of one part in a million.
    factor = int(room * (1 << FACTOR_BITS) / (max(1.0, longest) * (1 + 1e-6)))
    return min(factor, (1 << FACTOR_BITS) - 1)


def check_subspaces(dim: int, subspaces: int) -> None:
    """Raises ValueError if a token of so many columns cannot have so many residual bytes."""
    if subspaces < 1 or dim % subspaces:
        fitting = [str(each) for each in (4, 8, 16, 32) if dim % each == 0]
        raise ValueError(
            f"{subspaces} code bytes do not divide {dim} columns; use {', '.join(fitting)}"
        )


def rotated(rows: NDArray[np.integer], rotation: Fixed) -> Fixed:
    """Rows times the rotation's transpose, rounded to nearest, halves up; exact before that.

    Args:
        rows: [n, dim] integers in fixed point, of length 2 or less.
        rotation: int16[dim, dim].
    """
    products = rows.astype(np.float64) @ rotation.T.astype(np.float64)
    turned = (products.astype(np.int64) + ONE // 2) >> (ONE.bit_length() - 1)
    clipped: Fixed = np.clip(turned, -LARGEST, LARGEST).astype(np.int16)
    return clipped


def norms_of(rows: NDArray[np.integer]) -> NDArray[np.uint8]:
    """uint8[n]: per vector in fixed point, which factor brings it nearest to length 1."""
    # A square root is the same in every IEEE arithmetic.
    lengths = np.sqrt(np.maximum(squares(rows), 1).astype(np.float64))
    steps = np.rint((NORM_ONE * ONE / lengths - NORM_LEAST) / NORM_STEP)
    return np.clip(steps, 0, 255).astype(np.uint8)


def _nearest(rows: NDArray[np.integer], centres: Fixed) -> NDArray[np.integer]:
    """[rows, groups]: the nearest centre of each group, the first of equals; exact.

    Args:
        rows: [rows, groups x part] integers.
        centres: int16[groups, count, part].
    """
    groups, _, part = centres.shape
    parts = squares(rows.reshape(-1, part)).max(initial=0)
    longest = squares(centres.reshape(-1, part)).max()
    if 2 * math.isqrt(int(parts)) * math.isqrt(int(longest)) + longest < 1 << 30:
        return maxsim.nearest(np.ascontiguousarray(rows, dtype=np.int16), centres)
    # Vectors this long are met where one centroid stands for opposite tokens.
    found = np.empty((len(rows), groups), np.int64)
    for group, centre in enumerate(centres):
        mine = rows[:, group * part : (group + 1) * part].astype(np.float64)
        found[:, group] = (2 * mine @ centre.T.astype(np.float64) - squares(centre)).argmax(axis=1)
    return found
