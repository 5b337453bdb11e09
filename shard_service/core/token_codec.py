"""The port behind which token vectors are kept and compared, and its two adapters.

Whatever keeps the tokens, their similarities with a query are integers: equal on every
processor, in every shard.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shard_service.core.codec import Codec, Codes
from shard_service.core.vectors import Tokens
from shoal.kernels import maxsim
from shoal.kernels.fixed import ONE, Fixed, to_fixed
from shoal.kernels.maxsim import WORDS, CodedRuns, Matches, RowRuns, Tables
from shoal.types import Float32Matrix

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """Tokens of passages.

    Attributes:
        tokens: as their codec keeps them.
        starts: [passages + 1] int64, where each passage begins.
    """

    tokens: Tokens
    starts: Ints


class Question(Protocol):
    """A query, ready to be compared."""

    def score(self, runs: Runs, passages: Ints) -> Ints:
        """MaxSim of passages that have tokens, by all that the codec knows: [n] int64."""

    def score_centroids(self, runs: Runs, passages: Ints) -> Ints:
        """The same by centroids alone, those not probed imputed."""

    def match(self, runs: Runs, passages: Ints) -> Matches:
        """Which token of each passage every query token matched; sums to `score`."""


class TokenCodec(Protocol):
    """How a generation keeps token vectors."""

    @property
    def name(self) -> str:
        """64 hex digits, or empty for fixed point."""

    @property
    def description(self) -> str:
        """For people: "fixed-point", "pq8, 4096 centroids"."""

    @property
    def unit(self) -> float:
        """What 1 in an integer score is as a similarity, above 0."""

    @property
    def none(self) -> Tokens:
        """No tokens."""

    @property
    def slice_tokens(self) -> int:
        """Tokens that one query is compared with in about 5 ms."""

    def encode(self, vectors: NDArray[np.float16]) -> Tokens:
        """Tokens of [tokens, dim] vectors, none longer than 1; each depends on itself alone."""

    def decode(self, tokens: Tokens) -> Float32Matrix:
        """[tokens, dim] float32: what the tokens stand for."""

    def far(self, vectors: NDArray[np.float16], tokens: Tokens) -> int:
        """How many vectors the codec was not made for; `tokens` are they, encoded."""

    @property
    def packed_bytes(self) -> int:
        """Bytes of a token's codes where they are all that is kept of it; else 0."""

    def pack(self, tokens: Tokens) -> NDArray[np.uint8]:
        """Codes that are all that is kept, as [tokens, packed_bytes] uint8."""

    def unpack(self, rows: NDArray[np.uint8]) -> Tokens:
        """What `pack` packed.

        Raises:
            ValueError: it is nothing that this codec packed.
        """

    def question(self, query: Fixed, probes: int) -> Question:
        """A query.

        Args:
            query: [1 or more, dim] int16 in fixed point, none longer than 1.
            probes: centroids per token that `score_centroids` counts; 0 if it is not called.
        """


@dataclass(frozen=True, slots=True)
class _ExactQuestion:
    query: Fixed

    def score(self, runs: Runs, passages: Ints) -> Ints:
        return maxsim.score_rows(self.query, _rows(runs), passages)

    def score_centroids(self, runs: Runs, passages: Ints) -> Ints:
        raise AssertionError("fixed point has no centroids: every document is scored")

    def match(self, runs: Runs, passages: Ints) -> Matches:
        return maxsim.match_rows(self.query, _rows(runs), passages)


@dataclass(frozen=True, slots=True)
class ExactCodec:
    """Vectors in fixed point: nothing to train, from the first token on.

    Attributes:
        dim: columns of a vector.
    """

    dim: int
    name: str = ""
    description: str = "fixed-point"
    unit: float = 1.0 / ONE / ONE
    slice_tokens: int = 32_768

    @property
    def none(self) -> Tokens:
        """No tokens."""
        return (np.empty((0, self.dim), np.int16),)

    def encode(self, vectors: NDArray[np.float16]) -> Tokens:
        """[tokens, dim] int16."""
        return (to_fixed(vectors),)

    def decode(self, tokens: Tokens) -> Float32Matrix:
        """[tokens, dim] float32."""
        decoded: Float32Matrix = (tokens[0].astype(np.float64) / ONE).astype(np.float32)
        return decoded

    def far(self, vectors: NDArray[np.float16], tokens: Tokens) -> int:
        """None: fixed point keeps any vector as well as another."""
        return 0

    @property
    def packed_bytes(self) -> int:
        """0: vectors are kept."""
        return 0

    def pack(self, tokens: Tokens) -> NDArray[np.uint8]:
        """Never asked for."""
        raise AssertionError("vectors in fixed point are copied as vectors")

    def unpack(self, rows: NDArray[np.uint8]) -> Tokens:
        """Nothing is packed."""
        raise ValueError("vectors in fixed point have no codes")

    def question(self, query: Fixed, probes: int) -> Question:
        """A query."""
        return _ExactQuestion(query)


def _rows(runs: Runs) -> RowRuns:
    rows: NDArray[np.int16] = runs.tokens[0].astype(np.int16, copy=False)
    return RowRuns(rows, runs.starts)


@dataclass(frozen=True, slots=True)
class _CodedQuestion:
    full: Tables
    probed: Tables | None

    def score(self, runs: Runs, passages: Ints) -> Ints:
        return maxsim.score_coded(self.full, _coded(runs), passages)

    def score_centroids(self, runs: Runs, passages: Ints) -> Ints:
        assert self.probed is not None
        coded = _coded(runs)
        no_words = np.empty((len(coded.ids), 0), np.uint8)
        return maxsim.score_coded(
            self.probed, CodedRuns(coded.ids, no_words, coded.offsets), passages
        )

    def match(self, runs: Runs, passages: Ints) -> Matches:
        return maxsim.match_coded(self.full, _coded(runs), passages)


def _coded(runs: Runs) -> CodedRuns:
    ids, words, norms = runs.tokens
    return CodedRuns(
        ids.astype(np.uint16, copy=False),
        words.astype(np.uint8, copy=False),
        runs.starts,
        norms.astype(np.uint8, copy=False),
    )


@dataclass(frozen=True, slots=True)
class QuantisedCodec:
    """A centroid and residual words per token.

    Attributes:
        quantiser: the trained artefact.
    """

    quantiser: Codec
    slice_tokens: int = 524_288

    @property
    def name(self) -> str:
        """64 hex digits."""
        return self.quantiser.name

    @property
    def unit(self) -> float:
        """What 1 in an integer score is as a similarity: a power of two."""
        return self.quantiser.unit

    @property
    def description(self) -> str:
        """For people."""
        return f"pq{self.quantiser.subspaces}, {len(self.quantiser.centroids)} centroids"

    @property
    def none(self) -> Tokens:
        """No tokens."""
        words = np.empty((0, self.quantiser.subspaces), np.uint8)
        return (np.empty(0, np.uint16), words, np.empty(0, np.uint8))

    def encode(self, vectors: NDArray[np.float16]) -> Tokens:
        """Centroids [tokens] uint16, words [tokens, M] uint8, norms [tokens] uint8."""
        codes = self.quantiser.encode(vectors.astype(np.float32))
        return (codes.centroids, codes.words, codes.norms)

    def decode(self, tokens: Tokens) -> Float32Matrix:
        """[tokens, dim] float32."""
        coded = _coded(Runs(tokens, np.zeros(1, np.int64)))
        assert coded.norms is not None
        return self.quantiser.decode(Codes(coded.ids, coded.codes, coded.norms))

    def far(self, vectors: NDArray[np.float16], tokens: Tokens) -> int:
        """See `Codec.far`."""
        ids = tokens[0].astype(np.uint16, copy=False)
        return self.quantiser.far(vectors.astype(np.float32), ids)

    @property
    def packed_bytes(self) -> int:
        """A centroid's number, the words, the length."""
        return 2 + self.quantiser.subspaces + 1

    def pack(self, tokens: Tokens) -> NDArray[np.uint8]:
        """[tokens, packed_bytes] uint8."""
        centroids = np.ascontiguousarray(tokens[0], "<u2").view(np.uint8).reshape(-1, 2)
        return np.concatenate(
            [centroids, tokens[1], tokens[2][:, np.newaxis]], axis=1, dtype=np.uint8
        )

    def unpack(self, rows: NDArray[np.uint8]) -> Tokens:
        """What `pack` packed."""
        if rows.shape[1] != self.packed_bytes:
            raise ValueError(f"a token has {self.packed_bytes} bytes, not {rows.shape[1]}")
        centroids = np.ascontiguousarray(rows[:, :2]).view("<u2")[:, 0].astype(np.uint16)
        if len(centroids) and int(centroids.max()) >= len(self.quantiser.centroids):
            raise ValueError("a token has a centroid that the codec lacks")
        return (centroids, np.ascontiguousarray(rows[:, 2:-1]), np.ascontiguousarray(rows[:, -1]))

    def question(self, query: Fixed, probes: int) -> Question:
        """A query."""
        full = self.quantiser.tables(query)
        return _CodedQuestion(full, probed(full, probes) if probes else None)


def probed(query: Tables, probes: int) -> Tables:
    """Tables without residuals in which a query token sees the centroids that it probes.

    Ties at the last probe are all probed: which centroids count depends on similarities alone.
    A centroid that is not probed counts as the best of those (imputation as in Scheerer et al.,
    WARP (2025), but by rank, which depends on the query and the codec only).

    Args:
        query: a query's tables.
        probes: centroids per query token, 1 or more.
    """
    centroids = query.centroids
    blocks, _, count, lanes = centroids.shape
    if probes < count:
        centroids = maxsim.floored(centroids, probes + 1)
    return Tables(query.count, centroids, np.empty((blocks, 0, WORDS, lanes), np.int16))
