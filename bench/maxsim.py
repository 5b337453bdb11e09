"""MaxSim's kernels: million tokens a second on one core, beside the memory's bandwidth.

Seeded tables and codes of 32 query tokens, 4,096 centroids, documents of 1 to 480 tokens;
each path that the processor has, for several numbers of residual bytes.

Example:
    python -m bench.maxsim
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench import report
from shoal import kernels
from shoal.kernels import TokenCodes, late

CENTROIDS = 4_096
QUERY_TOKENS = 32
DOCUMENTS = 5_000
REPEATS = 5
PORTABLE_DOCUMENTS = 200


def best_s(call: Callable[[], object]) -> float:
    """Seconds of the fastest of some repeats."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def bandwidth_gb_s() -> float:
    """Bytes read and written by a copy of 256 MB, a second."""
    source = np.ones(1 << 25)
    target = np.empty_like(source)
    return 2 * source.nbytes / best_s(lambda: np.copyto(target, source)) / 1e9


def rates(subspaces: int) -> dict[str, float]:
    """Million tokens a second by path."""
    rng = np.random.default_rng(subspaces)
    lengths = rng.integers(1, 480, DOCUMENTS)
    tokens = int(lengths.sum())
    codes = TokenCodes(
        rng.integers(0, CENTROIDS, tokens).astype(np.uint32),
        rng.integers(0, 256, (tokens, subspaces)).astype(np.uint8),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )
    codes.check(CENTROIDS)
    most = late.LARGEST // (subspaces + 1)
    query = late.query_tables(
        rng.integers(-most, most, (QUERY_TOKENS, CENTROIDS)).astype(np.int16),
        rng.integers(-most, most, (QUERY_TOKENS, subspaces, 256)).astype(np.int16),
    )
    found = {}
    for path in kernels.MAXSIM_PATHS:
        count = PORTABLE_DOCUMENTS if path == "portable" else DOCUMENTS
        chosen = np.arange(count)
        took_s = best_s(lambda chosen=chosen, path=path: kernels.maxsim(query, codes, chosen, path))
        found[path] = round(float(lengths[:count].sum()) / took_s / 1e6, 2)
    return found


def main() -> None:
    """Measures, prints JSON and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=report.RESULTS)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"benchmark": "maxsim", **report.surroundings()}
    result["query_tokens"], result["centroids"] = QUERY_TOKENS, CENTROIDS
    result["copy_gb_per_s"] = round(bandwidth_gb_s(), 2)
    result["million_tokens_per_s"] = {str(count): rates(count) for count in (4, 8, 16, 32)}
    report.keep("maxsim", result, arguments.out)


if __name__ == "__main__":
    main()
