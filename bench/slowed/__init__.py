"""Slows the processes that run with this folder on PYTHONPATH, asleep and not on a core.

Python imports `sitecustomize` at start. A search takes BENCH_SEARCH_S longer for each
question of its message, and by chance (BENCH_SLOW_SHARE of the questions) BENCH_SLOW_S on
top; a run of an encoder's model takes BENCH_ENCODE_S for each text, and
as much again for each hundred tokens that the texts are padded to, or longer if it does
take longer. So what such a cluster bears is known, and is far below what this machine's
cores would. Nothing in the product knows of it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SEARCH_VARIABLE = "BENCH_SEARCH_S"
SLOW_SHARE_VARIABLE, SLOW_VARIABLE = "BENCH_SLOW_SHARE", "BENCH_SLOW_S"
ENCODE_VARIABLE = "BENCH_ENCODE_S"


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """What processes that are started within the block find in their environment."""
    before = dict(os.environ)
    path = [str(Path(__file__).parent), before.get("PYTHONPATH", "")]
    os.environ.update(variables, PYTHONPATH=os.pathsep.join(filter(None, path)))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
