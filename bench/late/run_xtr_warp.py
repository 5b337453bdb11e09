"""xtr-warp-rs, on CPUs: 4-bit residuals, WARP's search, its own defaults and deeper settings."""

import importlib.metadata
from collections.abc import Sequence

import torch
from xtr_warp.search import XTRWarp

from bench.late import common

DEEPER = ((32, 256), (64, 512), (128, 1_024))
"""(nprobe, bound) beyond the defaults, which it chooses by the index and the question."""


class XtrWarp:
    """A loaded index."""

    def __init__(self, task: common.Task) -> None:
        torch.set_num_threads(task.threads)
        self._threads = task.threads
        self._index = XTRWarp(str(task.folder / "index"), device="cpu")
        self._index.load(device="cpu", mmap=False)

    def candidates(self) -> Sequence[common.Settings]:
        """Defaults, then deeper."""
        return [{}, *({"nprobe": nprobe, "bound": bound} for nprobe, bound in DEEPER)]

    def search(self, query: common.Rows, settings: common.Settings) -> list[int]:
        """Document numbers."""
        found = self._index.search(
            torch.from_numpy(query)[None],
            common.TOP_K,
            num_threads=self._threads,
            show_progress=False,
            **settings,
        )
        return [document for document, _ in found[0]]


def build(task: common.Task) -> None:
    """With the package's defaults."""
    torch.set_num_threads(task.threads)
    documents = [torch.from_numpy(rows) for rows in task.documents]
    XTRWarp(str(task.folder / "index"), device="cpu").create(
        documents, device="cpu", show_progress=False
    )


if __name__ == "__main__":
    common.measure(build, XtrWarp, importlib.metadata.version("xtr-warp-rs"))
