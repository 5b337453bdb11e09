"""How many candidates to ask for, and when they were enough.

An exact engine's proposals hold every row that can be among the best K documents when
the last proposal's engine score plus the engine's error lies below the K-th document's
exact score; an approximate engine's are enough when they hold K documents. Else the
guard grows fourfold, and when that no longer pays, every live row is scored.

Source: DESIGN, section 6.
"""

import numpy as np
from numpy.typing import NDArray

from shard_service.core.live import Live

_LEAST = 2
_MOST = 1024
"""Rows asked for beyond K at most; measured in DESIGN, section 6."""
_SCAN_SHARE = 4
"""Approximate engines are given up when they should propose this part of all rows."""
_SCAN_ROWS = 16
"""So few live rows are scored faster than an engine is asked."""
_PASSAGES = 4
"""Passages of one document that are allowed for before any is seen."""
SCAN = 0
"""Instead of a number of rows: score every live row exactly."""


def first_ask(top_k: int, live: Live, *, exact: bool) -> int:
    """Rows to ask an engine for, or SCAN.

    Args:
        top_k: documents wanted.
        live: the source's visibility.
        exact: the engine is exact.
    """
    slack = min(_MOST, max(_LEAST, top_k // 8))
    if live.live_rows <= _SCAN_ROWS + top_k + slack:
        return SCAN
    # Several passages of one document are to be expected, as many as it has on average ...
    per_document = min(_PASSAGES, -(-live.live_rows // live.live_documents))
    ask = top_k * per_document + slack
    if not exact:
        return SCAN if ask * _SCAN_SHARE > live.live_rows else ask
    # ... and an exact engine ranks dead rows too.
    return min(-(-ask * live.rows // live.live_rows), live.rows)


def next_ask(ask: int, top_k: int, exact: bool, live_rows: int) -> int:
    """Rows to ask for after `ask` were not enough, or SCAN."""
    if exact:
        wider = top_k + 4 * max(1, ask - top_k)
        return SCAN if wider > top_k + _MOST or wider >= live_rows else wider
    wider = 2 * ask
    return SCAN if wider * _SCAN_SHARE > live_rows else wider


def enough_exact(
    last_score: NDArray[np.float32],
    error: NDArray[np.float64],
    kth_score: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Per query: no row that was not proposed can be among the best K documents.

    Args:
        last_score: [queries], engine score of the last proposal.
        error: [queries], bound on |engine score - exact score|.
        kth_score: [queries], exact score of the K-th document held; -inf if there
            are fewer.
    """
    enough: NDArray[np.bool_] = last_score.astype(np.float64) + error < kth_score
    return enough
