"""The vectors that every speed benchmark uses: 100,000 x 384 and 1,000 held-out queries.

Real ones where the judged corpora are at hand: the distinct sentences and
titles of SciFact and NFCorpus, filled up with pairs of neighbouring sentences,
encoded with all-MiniLM-L6-v2. The queries are sentences that were held out; the
corpora's own questions, which lie elsewhere than the documents and are harder
for an approximate index, come along to have their recall reported. They are
cached in an ignored folder, and never committed. Elsewhere: a seeded mixture
of Gaussians on low-dimensional planes. Every result says which was used.

Example:
    python -m bench.vectors --data ../shared/data --threads 1
"""

import argparse
import hashlib
import itertools
import json
import os
import random
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
STORE = ROOT / ".cache" / "bench" / "minilm.npz"
CORPORA = ("scifact", "nfcorpus")
DIM = 384
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9(])")
SHORTEST = 20  # characters; shorter pieces are rests of the splitting
MIXTURE_ROWS_PER_CENTRE = 100
MIXTURE_INTRINSIC_DIM = 24

Rows = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Vectors:
    """Unit vectors and where they come from.

    Attributes:
        documents: [n, 384] float32.
        queries: [m, 384] float32, none of them a document.
        questions: [q, 384] float32, from another distribution; q may be 0.
        source: what a result file says about them.
    """

    documents: Rows
    queries: Rows
    questions: Rows
    source: dict[str, Any] = field(default_factory=dict)


def default_data() -> Path:
    """The judged corpora: SHOAL_BENCH_DATA, or beside the checkout."""
    return Path(os.environ.get("SHOAL_BENCH_DATA", ROOT.parent / "shared" / "data"))


def corpus_texts(data: Path, count: int, queries: int) -> tuple[list[str], list[str]]:
    """`count` distinct texts, sentences and titles first, then pairs; and held-out sentences.

    Raises:
        ValueError: the corpora do not hold so many.
    """
    from bench.exact_reference import read_jsonl  # noqa: PLC0415  (imports torch)

    sentences: dict[str, None] = {}
    pairs: dict[tuple[str, str], None] = {}
    for name in CORPORA:
        for document in read_jsonl(data / name / "corpus.jsonl.gz"):
            pieces = [piece.strip() for piece in SENTENCE_END.split(document["text"])]
            pieces = [piece for piece in pieces if len(piece) >= SHORTEST]
            sentences.update(dict.fromkeys([document["title"], *pieces]))
            pairs.update(dict.fromkeys(itertools.pairwise(pieces)))
    sentences.pop("", None)
    chosen = list(sentences)
    random.Random(0).shuffle(chosen)
    held_out, chosen = chosen[:queries], chosen[queries : queries + count]
    hidden = set(held_out)
    fill = [" ".join(pair) for pair in pairs if hidden.isdisjoint(pair)]
    missing = count - len(chosen)
    if missing > len(fill):
        raise ValueError(f"{data} holds {len(chosen) + len(fill)} texts, wanted {count}")
    return chosen + random.Random(1).sample(fill, missing), held_out


def question_texts(data: Path, count: int, taken: set[str]) -> list[str]:
    """`count` of the corpora's questions, chosen by hash, none of them in `taken`."""
    from bench.exact_reference import read_jsonl  # noqa: PLC0415  (imports torch)

    texts = {
        item["text"] for name in CORPORA for item in read_jsonl(data / name / "queries.jsonl.gz")
    } - taken
    return sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())[:count]


def real(data: Path, count: int, queries: int) -> Vectors:
    """Encoded sentences and questions, from the cache as far as it holds them."""
    documents, held_out = corpus_texts(data, count, queries)
    questions = question_texts(data, queries, {*documents, *held_out})
    source = {
        "kind": "real",
        "documents": f"{count} sentences, titles and pairs of sentences of SciFact and NFCorpus",
        "queries": f"{queries} held-out sentences of the same",
        "questions": f"{queries} questions of SciFact and NFCorpus, for recall alone",
        "encoder": "all-MiniLM-L6-v2, fp32, normalised",
    }
    rows = encoded([*documents, *held_out, *questions])
    first, second = count, count + queries
    return Vectors(rows[:first], rows[first:second], rows[second:], source)


def mixture(count: int, queries: int, seed: int = 0) -> Vectors:
    """A seeded mixture: each centre spreads on a plane of its own, then unit length."""
    generator = np.random.default_rng(seed)
    number = max(1, count // MIXTURE_ROWS_PER_CENTRE)
    centres = generator.standard_normal((number, DIM))
    planes = generator.standard_normal((number, MIXTURE_INTRINSIC_DIM, DIM))
    of_row = generator.integers(number, size=count + queries)
    rows = np.empty((count + queries, DIM), dtype=np.float32)
    for centre in range(number):
        mine = np.flatnonzero(of_row == centre)
        spread = generator.standard_normal((len(mine), MIXTURE_INTRINSIC_DIM))
        rows[mine] = centres[centre] + spread @ planes[centre] / np.sqrt(MIXTURE_INTRINSIC_DIM)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    source = {
        "kind": "synthetic",
        "documents": f"{count} rows of {number} Gaussians, "
        f"intrinsic dimension {MIXTURE_INTRINSIC_DIM}, seed {seed}, normalised",
        "queries": f"{queries} more rows of the same",
    }
    return Vectors(rows[:count], rows[count:], rows[:0], source)


def load(data: Path, count: int = 100_000, queries: int = 1_000) -> Vectors:
    """Real vectors where the corpora are, else synthetic ones; `source` says which."""
    if all((data / name / "corpus.jsonl.gz").exists() for name in CORPORA):
        return real(data, count, queries)
    return mixture(count, queries)


def exact_neighbours(documents: Rows, queries: Rows, top_k: int) -> NDArray[np.int64]:
    """[m, top_k] rows of `documents` with the largest inner products, in float64."""
    columns = documents.astype(np.float64).T
    best = np.empty((len(queries), top_k), dtype=np.int64)
    for start in range(0, len(queries), 50):
        scores = queries[start : start + 50].astype(np.float64) @ columns
        best[start : start + 50] = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    return best


def recall(found: list[list[int]], exact: NDArray[np.int64]) -> float:
    """Share of the exact neighbours that were found."""
    hits = sum(len(set(row) & set(want.tolist())) for row, want in zip(found, exact, strict=True))
    return hits / exact.size


def encoded(texts: list[str]) -> Rows:
    """[len(texts), 384] unit vectors; encodes what the cache lacks, and keeps it."""
    known: dict[bytes, Rows] = {}
    if STORE.exists():
        with np.load(STORE) as store:
            known = dict(zip(store["keys"].tolist(), store["rows"], strict=True))
    keys = [hashlib.sha256(text.encode()).hexdigest().encode() for text in texts]
    missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
    if missing:
        from bench.exact_reference import encode  # noqa: PLC0415  (imports torch)

        rows = encode(list(missing.values())).astype(np.float32)
        known.update(zip(missing, rows, strict=True))
        STORE.parent.mkdir(parents=True, exist_ok=True)
        partial = STORE.with_suffix(".partial.npz")
        np.savez(partial, keys=np.array(list(known)), rows=np.stack(list(known.values())))
        partial.rename(STORE)
    return np.stack([known[key] for key in keys])


def main() -> None:
    """Fills the cache and prints what it holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=default_data())
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    import torch  # noqa: PLC0415  (only this command encodes)

    torch.set_num_threads(arguments.threads)
    vectors = load(arguments.data, arguments.count)
    print(json.dumps({**vectors.source, "shape": list(vectors.documents.shape)}, indent=2))


if __name__ == "__main__":
    main()
