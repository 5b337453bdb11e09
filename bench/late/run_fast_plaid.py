"""fast-plaid, on CPUs: 4-bit residuals, its defaults and cheaper settings."""

import importlib.metadata
from collections.abc import Sequence

import torch
from fast_plaid.search import FastPlaid

from bench.late import common

SETTINGS = ((4, 256), (8, 1_024), (8, 4_096))
"""(n_ivf_probe, n_full_scores); the last are its defaults."""


class Plaid:
    """A loaded index."""

    def __init__(self, task: common.Task) -> None:
        torch.set_num_threads(task.threads)
        self._index = FastPlaid(str(task.folder / "index"), device="cpu")

    def candidates(self) -> Sequence[common.Settings]:
        """From cheap to its defaults."""
        return [{"n_ivf_probe": probes, "n_full_scores": full} for probes, full in SETTINGS]

    def search(self, query: common.Rows, settings: common.Settings) -> list[int]:
        """Document numbers."""
        found = self._index.search(
            torch.from_numpy(query)[None],
            top_k=common.TOP_K,
            show_progress=False,
            n_processes=1,
            **settings,
        )
        return [document for document, _ in found[0]]


def build(task: common.Task) -> None:
    """With the package's defaults."""
    torch.set_num_threads(task.threads)
    FastPlaid(str(task.folder / "index"), device="cpu").create(
        [torch.from_numpy(rows) for rows in task.documents]
    )


if __name__ == "__main__":
    common.measure(build, Plaid, importlib.metadata.version("fast-plaid"))
