"""How many candidates to ask for, and when they were enough.

An exact engine's proposals hold every row that can be among the best K documents when
the last proposal's engine score plus the engine's error lies below the K-th document's
exact score; an approximate engine's are enough when they hold K documents. Else the
guard doubles, and when that no longer pays, every live row is scored.

Source: DESIGN, section 6.
"""

import numpy as np
from numpy.typing import NDArray

_LEAST = 8
_MOST = 1024
"""Rows asked for beyond K at most; measured in DESIGN, section 6."""
_SCAN_SHARE = 4
"""Approximate engines are given up when they should propose this part of all rows."""
SCAN = 0
"""Instead of a number of rows: score every live row exactly."""


def first_ask(top_k: int, exact: bool, expansion: int, rows: int, live_rows: int) -> int:
    """Rows to ask an engine for, or SCAN.

    Args:
        top_k: documents wanted.
        exact: the engine is exact.
        expansion: rows per document that an approximate engine was tuned for.
        rows: rows of the source.
        live_rows: live ones.
    """
    if live_rows <= _LEAST + top_k:
        return SCAN
    if not exact:
        ask = max(top_k * expansion, top_k + _LEAST)
        return SCAN if ask * _SCAN_SHARE > live_rows else ask
    # An exact engine ranks dead rows too: ask for as many more as are to be expected.
    ask = -(-(top_k + min(_MOST, max(_LEAST, top_k // 8))) * rows // live_rows)
    return min(ask, rows)


def next_ask(ask: int, top_k: int, exact: bool, live_rows: int) -> int:
    """Rows to ask for after `ask` were not enough, or SCAN."""
    if exact:
        wider = top_k + 2 * max(1, ask - top_k)
        return SCAN if wider > top_k + _MOST or wider >= live_rows else wider
    wider = 2 * ask
    return SCAN if wider * _SCAN_SHARE > live_rows else wider


def enough_exact(
    last_score: NDArray[np.float32],
    returned_all: NDArray[np.bool_],
    error: NDArray[np.float64],
    kth_score: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Per query: no row that was not proposed can be among the best K documents.

    Args:
        last_score: [queries], engine score of the last proposal.
        returned_all: [queries], every row was proposed.
        error: [queries], bound on |engine score - exact score|.
        kth_score: [queries], exact score of the K-th document held; -inf if there
            are fewer.
    """
    enough: NDArray[np.bool_] = returned_all | (last_score.astype(np.float64) + error < kth_score)
    return enough
