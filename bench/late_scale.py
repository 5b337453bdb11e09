"""Late interaction by corpus size: what a question costs, and what a shard keeps in memory.

Larger corpora are made of real token matrices: each document is the first half of one of
SciFact's and the second half of another. A shard of each size is written as the sealer writes it,
opened by a fresh process, and asked the judged questions, in process and one at a time. How deep
`normal` has to look is measured on the same questions, against every document's codes.

Example:
    python -m bench.late_scale --data ../shared/data
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import plot, report, vectors
from bench.encoder import running as running_encoder
from bench.late.common import resident_mib
from bench.tokens import MODEL, Encoded, encoded, sample
from shard_service.assembly import assemble
from shard_service.codecs import read_codec, write_codec
from shard_service.core.late import LateQuery
from shard_service.core.records import Content, Version, encode_content
from shard_service.core.source import token_sources
from shard_service.core.state import ShardState, Writes
from shard_service.core.token_codec import Runs
from shard_service.core.vectors import TokenVectors, starts_of
from shard_service.indexes import threads
from shard_service.indexes.codec import train
from shard_service.segments import SegmentStore
from shard_service.settings import ShardSettings
from shard_service.shard import Shard
from shard_service.spec import ShardSpec
from shard_service.token_layout import TokenLayout
from shoal.ids import content_digest
from shoal.kernels.fixed import to_fixed, unit_rows
from shoal.storage.directory import Storage, open_storage
from shoal.types import Document, Kind, ShardRef, Similarity

CORPUS, CODE_BYTES, PROBES = "scifact", 8, 64
SIZES = (10_000, 60_000, 300_000)
QUESTIONS = 100
RECALL = 0.99
BATCH = 2_000
NAMES = 32


def version(number: int) -> Version:
    """A document without content."""
    document = Document(f"d{number}", "", "", b"")
    digest = content_digest(document, b"")
    spans = np.zeros((1, 2), np.uint32)
    content = encode_content(Content(document, digest, 1, spans))
    return Version(document.id.encode(), digest, 1, content)


def halves(
    starts: NDArray[np.int64], documents: int, dice: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Documents of the first half of one and the second half of another.

    Args:
        starts: [known + 1], where each known document's rows begin.
        documents: how many to make.
        dice: chooses.

    Returns:
        Rows of the known documents one after the other, and where each made one begins.
    """
    known = len(starts) - 1
    first, second = dice.integers(0, known, (2, documents)).tolist()
    middles = starts[:-1] + np.diff(starts) // 2
    rows = [
        np.concatenate([np.arange(starts[a], middles[a]), np.arange(middles[b], starts[b + 1])])
        for a, b in zip(first, second, strict=True)
    ]
    return np.concatenate(rows), starts_of(np.array([len(each) for each in rows]))


def mixed(codes: TokenVectors, documents: int, dice: np.random.Generator) -> TokenVectors:
    """Documents made by `halves`, of coded tokens."""
    taken, starts = halves(codes.starts, documents, dice)
    return TokenVectors(codes.rows[:0], starts, tuple(column[taken] for column in codes.codes))


def written(folder: Path, corpus: Encoded, documents: int) -> dict[str, Any]:
    """A sealed shard in a folder."""
    storage = open_storage(str(folder))
    codec = train(sample(corpus), CODE_BYTES)
    spec = spec_of(documents, corpus.rows.shape[1], codec.name)
    write_codec(codec, spec.ref.collection, storage)
    layout = TokenLayout(read_codec(spec, storage), spec.dim)
    store = SegmentStore(spec, storage, layout, 1)
    store.open()
    state = ShardState(layout.tail(), [], 0)
    dice = np.random.default_rng(documents)
    codes = layout.vectors(corpus.rows, corpus.starts)
    for begin in range(0, documents, BATCH):
        numbers = range(begin, min(begin + BATCH, documents))
        sequences = np.array(numbers, np.uint64) + np.uint64(1)
        made = mixed(codes, len(numbers), dice)
        state.write(Writes([version(number) for number in numbers], sequences, made))
    entry, _ = assemble(store, state.freeze([], with_tail=True))
    assert entry is not None
    store.publish(documents, [], 0, entry, {})
    size = sum(file.size for file in entry.files)
    tokens = sum(source.live_tokens for source in token_sources(state.view()))
    return {"tokens": tokens, "codec": codec.name, "disk_bytes_per_token": round(size / tokens, 2)}


def spec_of(documents: int, dim: int, codec: str) -> ShardSpec:
    """The shard of a size."""
    ref = ShardRef(f"{documents:0{NAMES}x}", 1, 0)
    return ShardSpec(ref, 1, dim, Similarity.COSINE, "", "auto", Kind.COLBERT, codec)


def asked(folder: Path, file: Path, documents: int, codec: str) -> dict[str, Any]:
    """In a fresh process: opens the shard and asks."""
    threads.use_one_core()
    storage: Storage = open_storage(str(folder))
    with np.load(file) as held:
        dim = held["rows"].shape[1]
        parts = np.split(held["query_rows"], np.cumsum(held["query_counts"])[:-1])[:QUESTIONS]
    questions = [to_fixed(unit_rows(each.astype(np.float32))) for each in parts]
    before = resident_mib()
    started = time.perf_counter()
    shard = Shard(spec_of(documents, dim, codec), storage, ShardSettings(), 2)
    result: dict[str, Any] = {"open_s": round(time.perf_counter() - started, 2)}
    result["resident_mib_open"] = round(resident_mib() - before, 1)
    refined, share = depth(shard, questions)
    result |= {"refined": refined, "tokens_refined": round(share, 4)}
    for name, count in (("normal", refined), ("every_document", 0)):
        times = [timed(shard, LateQuery(each, 10, PROBES, count)) for each in questions]
        result[f"{name}_ms"] = {
            "p50": round(float(np.percentile(times, 50)), 2),
            "p99": round(float(np.percentile(times, 99)), 2),
        }
    result["resident_mib_asked"] = round(resident_mib() - before, 1)
    shard.close()
    return result


def depth(shard: Shard, questions: list[Any]) -> tuple[int, float]:
    """Documents to be refined for RECALL of the ten best, and the share of tokens in them."""
    assert isinstance(shard.layout, TokenLayout)
    (source,) = token_sources(shard.view)
    runs = Runs(source.table.tokens, source.table.token_starts)
    every = np.arange(source.table.documents)
    ranks = []
    for each in questions:
        question = shard.layout.codec.question(each, PROBES)
        full, coarse = question.score(runs, every), question.score_centroids(runs, every)
        best = np.argsort(-full, kind="stable")[:10]
        ranks += [int((coarse > coarse[place]).sum()) for place in best]
    refined = sorted(ranks)[int(RECALL * len(ranks))] + 1
    found = shard.search_late(
        shard.view, [LateQuery(questions[0], 10, PROBES, refined)], lambda: np.ones(1, np.bool_)
    )
    return refined, found.tokens_scored / source.live_tokens


def timed(shard: Shard, query: LateQuery) -> float:
    """Milliseconds of one search."""
    started = time.perf_counter()
    shard.search_late(shard.view, [query], lambda: np.ones(1, np.bool_))
    return (time.perf_counter() - started) * 1e3


def measured(corpus: Encoded, file: Path, documents: int) -> dict[str, Any]:
    """One size."""
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        result = written(Path(folder), corpus, documents)
        command = [sys.executable, "-m", "bench.late_scale", "--asked", folder, str(file)]
        done = subprocess.run(
            [*command, str(documents), result.pop("codec")],
            cwd=report.ROOT,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    result |= json.loads(done.stdout)
    print(f"{documents}: {result}", file=sys.stderr, flush=True)
    return result


def main() -> None:
    """Measures, prints JSON, writes it and the plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=vectors.default_data())
    parser.add_argument("--out", type=Path, default=report.RESULTS)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--asked", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.asked:
        folder, file, documents, codec = arguments.asked
        print(json.dumps(asked(Path(folder), Path(file), int(documents), codec)))
        return
    result: dict[str, Any] = {"benchmark": "late_scale", "model": MODEL, **report.surroundings()}
    with running_encoder("auto", "auto", MODEL) as encoder:
        corpus = encoded(encoder, arguments.data, CORPUS)
        file = encoder_file(encoder.model.fingerprint)
    result["sizes"] = {str(size): measured(corpus, file, size) for size in arguments.sizes}
    plot.late_scale(result, arguments.out / "late_scale.svg")
    report.keep("late_scale", result, arguments.out)


def encoder_file(fingerprint: str) -> Path:
    """Where the corpus' vectors are kept."""
    return (report.ROOT / ".cache" / "bench" / f"tokens-{CORPUS}-{fingerprint[:16]}.npz").resolve()


if __name__ == "__main__":
    main()
