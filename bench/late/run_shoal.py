"""A shard's own search in process, by the documents that are refined."""

import importlib.metadata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bench.late import common
from bench.tokens import Encoded, sample
from shard_service.core.codec import Codec, from_bytes
from shard_service.core.late import LateQuery, search
from shard_service.core.live import all_live
from shard_service.core.source import TokenSource, View
from shard_service.core.table import TokenTable
from shard_service.core.token_codec import QuantisedCodec
from shard_service.core.vectors import starts_of
from shard_service.indexes.codec import train
from shoal.kernels.fixed import to_fixed, unit_rows

PROBES = 64
REFINED = (16, 32, 64, 128, 256, 512, 1_024, 0)
"""Documents scored by their codes; 0 scores every one."""
COLUMNS = ("centroids", "words", "norms")


class Engine:
    """One codec's index, in memory."""

    def __init__(self, task: common.Task) -> None:
        codec = from_bytes((task.folder / "codec").read_bytes())
        self._codec = QuantisedCodec(codec)
        tokens = tuple(np.load(task.folder / f"{name}.npy") for name in COLUMNS)
        source = TokenSource(_table(task, tokens), all_live(_count(task), _count(task)), _nothing)
        self._view = View((source,), (), _count(task), _count(task), _count(task))

    def candidates(self) -> Sequence[common.Settings]:
        """From cheap to every document."""
        return [{"refined": refined} for refined in REFINED]

    def search(self, query: common.Rows, settings: common.Settings) -> list[int]:
        """Document numbers, cut as a router cuts them."""
        wanted = LateQuery(to_fixed(unit_rows(query)), common.TOP_K, PROBES, settings["refined"])
        hits = search(self._view, self._codec, [wanted], lambda: np.ones(1, np.bool_)).hits
        # A document's sequence number is its number and 1.
        order = np.argsort(-hits.scores, kind="stable")[: common.TOP_K]
        found: list[int] = (hits.sequences[order].astype(np.int64) - 1).tolist()
        return found


def _table(task: common.Task, tokens: tuple[NDArray[np.generic], ...]) -> TokenTable:
    ids = [each.encode() for each in task.ids]
    return TokenTable(
        ids=np.frombuffer(b"".join(ids), np.uint8),
        id_starts=starts_of(np.array([len(each) for each in ids])),
        sequences=np.arange(1, len(ids) + 1, dtype=np.uint64),
        digests=np.zeros((len(ids), 16), np.uint8),
        row_starts=np.arange(len(ids) + 1),
        token_starts=np.load(task.folder / "starts.npy"),
        tokens=tokens,
    )


def _count(task: common.Task) -> int:
    return len(task.ids)


def _nothing(_: int) -> bytes:
    return b""


def build(task: common.Task) -> None:
    """Trains a codec, encodes, and writes what a segment has of it."""
    rows = np.concatenate(task.documents)
    starts = starts_of(np.array([len(each) for each in task.documents]))
    corpus = Encoded(task.ids, rows.astype(np.float16), starts, {})
    codec: Codec = train(sample(corpus), task.code_bytes)
    codes = codec.encode(rows)
    (task.folder / "codec").write_bytes(codec.to_bytes())
    np.save(task.folder / "starts.npy", starts)
    for name in COLUMNS:
        np.save(task.folder / f"{name}.npy", getattr(codes, name))


if __name__ == "__main__":
    common.measure(build, Engine, importlib.metadata.version("shoal"))
