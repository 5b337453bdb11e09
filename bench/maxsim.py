"""MaxSim's kernels on one core: million tokens/s by residual bytes and path, beside the memory.

Seeded tables and codes: 32 query tokens, 4,096 centroids, documents of 1 to 480 tokens in
random order. The memory's figure is of the same run: bytes read and written by a copy.

Example:
    python -m bench.maxsim
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import report
from shoal.kernels import maxsim
from shoal.kernels.maxsim import CodedRuns, RowRuns, Tables

CENTROIDS = 4_096
QUERY_TOKENS = 32
DIM = 96
DOCUMENTS = 2_000
DOCUMENT_TOKENS_MAX = 480
CODE_BYTES = (0, 4, 8, 16, 32)
REPEATS = 7
ENCODED = 4_096
COPY_WORDS = 1 << 24
SEED = 8

Rates = dict[str, float]


def took_s(call: Callable[[], object]) -> float:
    """Seconds of the median repeat, after one that is not counted."""
    call()
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return report.middle(times)


def fixed(dice: np.random.Generator, count: int, length: float) -> NDArray[np.int16]:
    """[count, DIM] random vectors in fixed point."""
    drawn = dice.standard_normal((count, DIM))
    drawn *= length / np.linalg.norm(drawn, axis=1, keepdims=True)
    return np.rint(drawn).astype(np.int16)


def coded_rates(dice: np.random.Generator, offsets: NDArray[np.int64], code_bytes: int) -> Rates:
    """Million tokens/s of each compiled path; all must give the same scores."""
    tokens = int(offsets[-1])
    query = fixed(dice, QUERY_TOKENS, 16_384)
    centroids, words = fixed(dice, CENTROIDS, 16_384), fixed(dice, 256, 4_096)
    groups = np.empty((0, 256, 0), np.int16)
    if code_bytes:
        groups = words.reshape(256, code_bytes, -1).swapaxes(0, 1).copy()
    factor = 1 << 17
    tables = Tables(
        QUERY_TOKENS,
        maxsim.tables(query, centroids[np.newaxis], factor),
        maxsim.tables(query[:, : groups.size // 256], groups, factor)
        if code_bytes
        else np.empty((1, 0, 256, maxsim.LANES), np.int16),
    )
    runs = CodedRuns(
        dice.integers(0, CENTROIDS, tokens).astype(np.uint16),
        dice.integers(0, 256, (tokens, code_bytes)).astype(np.uint8),
        offsets,
    )
    order = dice.permutation(len(offsets) - 1)
    scores = [maxsim.score_coded(tables, runs, order, path) for path in maxsim.PATHS[:-1]]
    if any(not np.array_equal(scores[0], other) for other in scores):
        raise AssertionError("paths disagree")
    return {
        path: rate(tokens, lambda path=path: maxsim.score_coded(tables, runs, order, path))
        for path in maxsim.PATHS[:-1]
    }


def other_rates(dice: np.random.Generator) -> dict[str, Rates]:
    """Fixed-point MaxSim, assignment, and a query's table of centroids, by compiled path."""
    rows, query = fixed(dice, 20_000, 16_384), fixed(dice, QUERY_TOKENS, 16_384)
    centroids = rows[np.newaxis, :CENTROIDS].copy()
    runs = RowRuns(rows, np.linspace(0, len(rows), 101).astype(np.int64))
    documents = np.arange(100)
    found: dict[str, Rates] = {"fixed_point": {}, "nearest": {}, "centroid_table_ms": {}}
    for path in maxsim.PATHS[:-1]:
        found["fixed_point"][path] = rate(
            len(rows), lambda path=path: maxsim.score_rows(query, runs, documents, path)
        )
        found["nearest"][path] = rate(
            ENCODED, lambda path=path: maxsim.nearest(rows[:ENCODED], centroids, path)
        )
        found["centroid_table_ms"][path] = report.middle(
            [took_s(lambda path=path: maxsim.tables(query, centroids, 1 << 17, path)) * 1e3]
        )
    return found


def rate(tokens: int, call: Callable[[], object]) -> float:
    """Million tokens/s."""
    return report.middle([tokens / took_s(call) / 1e6])


def copy_gb_per_s() -> float:
    """Bytes read and written by a copy."""
    source = np.ones(COPY_WORDS)
    target = np.empty_like(source)
    return report.middle([2 * source.nbytes / took_s(lambda: np.copyto(target, source)) / 1e9])


def main() -> None:
    """Measures, prints JSON and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=report.RESULTS)
    arguments = parser.parse_args()
    dice = np.random.default_rng(SEED)
    lengths = dice.integers(1, DOCUMENT_TOKENS_MAX, DOCUMENTS)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    result: dict[str, Any] = {"benchmark": "maxsim", **report.surroundings()}
    result |= {
        "query_tokens": QUERY_TOKENS,
        "centroids": CENTROIDS,
        "dim": DIM,
        "tokens": int(offsets[-1]),
        "copy_gb_per_s": copy_gb_per_s(),
        "million_tokens_per_s": {
            str(code_bytes): coded_rates(dice, offsets, code_bytes) for code_bytes in CODE_BYTES
        },
        **other_rates(dice),
    }
    report.keep("maxsim", result, arguments.out)


if __name__ == "__main__":
    main()
