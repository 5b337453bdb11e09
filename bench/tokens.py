"""Late interaction on the judged corpora: exact MaxSim, and MaxSim over the codec's tiers.

One encoder process, asked over gRPC; documents whole, cut at the card's length. Exact MaxSim of
all vectors is the ceiling. For each tier, with all vectors and with fewer (pooled), every document
is scored, which shows what the codec loses and nothing else; then only the best by centroid score,
which shows what pruning adds to that.

Example:
    python -m bench.tokens --data ../shared/data --corpora scifact
"""

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
from ir_measures import R, nDCG
from numpy.typing import NDArray

from bench import report, vectors
from bench.encoder import BATCH, CALLS_IN_FLIGHT, DEPTH, TIMEOUT_S, Encoder, running
from bench.exact_reference import read_jsonl, read_qrels
from router.core.pooling import pool
from shard_service.core.token_codec import QuantisedCodec, Runs
from shard_service.core.vectors import starts_of
from shard_service.indexes.codec import SAMPLE_TOKENS, spaced, spacing, train
from shoal.ids import sample_rank
from shoal.kernels.fixed import to_fixed, unit_rows
from shoal.rpc.encoder.v1 import encoder_pb2
from shoal.wire.arrays import matrix_from_message

MODEL = "all-minilm-l6-v2-tokens"
PUBLISHED = {"scifact": 0.697, "nfcorpus": 0.343}
"""nDCG@10 of plain principal directions to 96 columns, the least that is wanted."""
SLACK = 0.002
TIERS = (4, 8, 16, 32)
LOSS = {4: 0.015, 8: 0.005}
"""nDCG@10 that a tier may lose against exact MaxSim."""
OVERLAP = 0.95
"""overlap@10 with exact MaxSim that the largest tier is to reach."""
BYTES = 12.0
CACHE = Path(".cache/bench")
DEEPEST = 10
PROBES, RECALL = 64, 0.99
"""Centroids of each query token that are tried, and the share of the ten best by the codes that
pruning is to keep."""

Rows = NDArray[np.float32]
Scores = dict[str, NDArray[np.int64]]
"""Of every document, by question."""


def documents(encoder: Encoder, texts: list[dict[str, Any]]) -> tuple[Rows, NDArray[np.int64]]:
    """Token vectors of all documents, and where each begins."""

    def one(batch: list[dict[str, Any]]) -> encoder_pb2.EncodeDocumentsResponse:
        request = encoder_pb2.EncodeDocumentsRequest(
            fingerprint=encoder.model.fingerprint,
            documents=[
                encoder_pb2.DocumentText(title=item["title"], text=item["text"]) for item in batch
            ],
        )
        return encoder.stub.EncodeDocuments(request, timeout=TIMEOUT_S)

    with ThreadPoolExecutor(CALLS_IN_FLIGHT) as pool:
        replies = list(
            pool.map(one, [texts[at : at + BATCH] for at in range(0, len(texts), BATCH)])
        )
    counts = np.array([count for reply in replies for count in reply.row_counts])
    rows = np.concatenate([matrix_from_message(reply.vectors) for reply in replies])
    return rows, (np.cumsum(counts) - counts).astype(np.int64)


def questions(encoder: Encoder, texts: list[str]) -> list[Rows]:
    """Token vectors of each question."""
    found: list[Rows] = []
    for at in range(0, len(texts), BATCH):
        some = texts[at : at + BATCH]
        request = encoder_pb2.EncodeQueriesRequest(
            fingerprint=encoder.model.fingerprint,
            texts=some,
            allow_truncation=[True] * len(some),
        )
        reply = encoder.stub.EncodeQueries(request, timeout=TIMEOUT_S)
        rows = matrix_from_message(reply.vectors)
        found += np.split(rows, np.cumsum(reply.row_counts)[:-1])
    return found


Run = dict[str, dict[str, float]]


def ranked(scores: dict[str, NDArray[Any]], ids: Sequence[str]) -> Run:
    """The best documents of every question by their scores."""
    return {
        question: {ids[at]: float(row[at]) for at in np.argsort(-row, kind="stable")[:DEPTH]}
        for question, row in scores.items()
    }


def overlap(run: Run, exact: Run) -> float:
    """Share of the exact ten best that are among a run's ten best."""
    shares = [
        len({*list(run[question])[:DEEPEST]} & {*list(best)[:DEEPEST]}) / DEEPEST
        for question, best in exact.items()
    ]
    return round(float(np.mean(shares)), 4)


def measured(judged: Any, run: Run) -> dict[str, float]:
    """nDCG@10 and recall@100."""
    found = ir_measures.calc_aggregate([nDCG @ 10, R @ 100], judged, run)
    return {"ndcg@10": round(found[nDCG @ 10], 4), "recall@100": round(found[R @ 100], 4)}


def loss(judged: Any, run: Run, exact: Run) -> dict[str, float]:
    """nDCG@10 below exact MaxSim: the mean over the questions, and its standard error."""
    ours, theirs = (
        {found.query_id: found.value for found in ir_measures.iter_calc([nDCG @ 10], judged, each)}
        for each in (run, exact)
    )
    lost = np.array([theirs[question] - ours[question] for question in exact])
    error = lost.std(ddof=1) / np.sqrt(len(lost))
    return {"mean": round(float(lost.mean()), 4), "standard_error": round(float(error), 4)}


@dataclass(frozen=True, slots=True)
class Encoded:
    """A corpus as token vectors.

    Attributes:
        ids: of the documents.
        rows: [tokens, dim] float16, as shards get them.
        starts: [documents + 1] int64, where each document begins.
        queries: per judged question its vectors, by id.
    """

    ids: list[str]
    rows: NDArray[np.float16]
    starts: NDArray[np.int64]
    queries: dict[str, Rows]


def encoded(encoder: Encoder, data: Path, name: str) -> Encoded:
    """A corpus; only the real encoder fills the cache that spares a second time."""
    file = CACHE / f"tokens-{name}-{encoder.model.fingerprint[:16]}.npz"
    if not file.exists():
        corpus = read_jsonl(data / name / "corpus.jsonl.gz")
        judged = read_qrels(data / name / "qrels" / "test.tsv")
        asked = [q for q in read_jsonl(data / name / "queries.jsonl.gz") if q["_id"] in judged]
        rows, starts = documents(encoder, corpus)
        found = questions(encoder, [item["text"] for item in asked])
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(
            file,
            ids=np.array([item["_id"] for item in corpus]),
            rows=rows.astype(np.float16),
            starts=np.append(starts, len(rows)),
            query_ids=np.array([item["_id"] for item in asked]),
            query_rows=np.concatenate(found),
            query_counts=np.array([len(each) for each in found]),
        )
    with np.load(file) as held:
        parts = np.split(held["query_rows"], np.cumsum(held["query_counts"])[:-1])
        return Encoded(
            held["ids"].tolist(),
            held["rows"],
            held["starts"],
            dict(zip(held["query_ids"].tolist(), parts, strict=True)),
        )


def sample(corpus: Encoded) -> Rows:
    """Tokens of the documents with the smallest sample rank, as a cluster takes them."""
    order = sorted(range(len(corpus.ids)), key=lambda at: sample_rank(corpus.ids[at].encode()))
    every = spacing(len(corpus.rows))
    chosen: list[Rows] = []
    seen = 0
    for at in order:
        if seen >= every * SAMPLE_TOKENS:
            break
        mine = corpus.rows[corpus.starts[at] : corpus.starts[at + 1]]
        chosen.append(spaced(mine, seen, every).astype(np.float32))
        seen += len(mine)
    return np.concatenate(chosen)


def fewer(corpus: Encoded, factor: int) -> Encoded:
    """The corpus with each document's vectors pooled."""
    if factor == 1:
        return corpus
    rows, counts = pool(corpus.rows.astype(np.float32), np.diff(corpus.starts).tolist(), factor)
    return Encoded(corpus.ids, rows.astype(np.float16), starts_of(np.array(counts)), corpus.queries)


def exactly(corpus: Encoded) -> Run:
    """Exact MaxSim."""
    rows = corpus.rows.astype(np.float32)
    scores = {
        question: np.maximum.reduceat(rows @ query.T, corpus.starts[:-1], axis=0).sum(axis=1)
        for question, query in corpus.queries.items()
    }
    return ranked(scores, corpus.ids)


def quality(encoder: Encoder, data: Path, name: str, factors: Sequence[int]) -> dict[str, Any]:
    """One corpus."""
    corpus = encoded(encoder, data, name)
    judged = read_qrels(data / name / "qrels" / "test.tsv")
    exact = exactly(corpus)
    result: dict[str, Any] = {"documents": len(corpus.ids), "tokens": len(corpus.rows)}
    result |= {"dim": corpus.rows.shape[1], "exact": measured(judged, exact), "pool factors": {}}
    print(f"{name} exact: {result['exact']}", file=sys.stderr, flush=True)
    for factor in factors:
        kept = fewer(corpus, factor)
        run = exactly(kept)
        found: dict[str, Any] = {"tokens": len(kept.rows), "exact": measured(judged, run)}
        found["exact"]["overlap@10 with exact"] = overlap(run, exact)
        taken = sample(kept)
        found["tiers"] = {}
        for code_bytes in TIERS:
            tier = _tier(code_bytes, taken, kept, judged, exact)
            tier["bytes_per_source_token"] = round(tier.pop("bytes") / len(corpus.rows), 2)
            found["tiers"][str(code_bytes)] = tier
            print(f"{name} / {factor}, {code_bytes} bytes: {tier}", file=sys.stderr, flush=True)
        result["pool factors"][str(factor)] = found
    return result


def _tier(code_bytes: int, taken: Rows, corpus: Encoded, judged: Any, exact: Run) -> dict[str, Any]:
    began = time.perf_counter()
    codec = QuantisedCodec(train(taken, code_bytes))
    trained = time.perf_counter()
    tokens = codec.encode(corpus.rows)
    ended = time.perf_counter()
    runs, every = Runs(tokens, corpus.starts), np.arange(len(corpus.ids))
    full, coarse, times = {}, {}, []
    for question, query in corpus.queries.items():
        fixed = to_fixed(unit_rows(query))
        start = time.perf_counter()
        full[question] = codec.question(fixed, 0).score(runs, every)
        times.append((time.perf_counter() - start) * 1e3)
        coarse[question] = codec.question(fixed, PROBES).score_centroids(runs, every)
    run = ranked(full, corpus.ids)
    columns = (*tokens, corpus.starts)
    return {
        "bytes": sum(column.nbytes for column in columns) + len(codec.quantiser.to_bytes()),
        "trained_s": round(trained - began, 1),
        "encoded_s": round(ended - trained, 1),
        "every_document_ms": {"p50": report.middle(times)},
        **measured(judged, run),
        "ndcg@10 lost": loss(judged, run, exact),
        "overlap@10 with exact": overlap(run, exact),
        "pruned": _pruned(full, coarse, corpus, run, exact),
    }


def _pruned(
    full: Scores, coarse: Scores, corpus: Encoded, every: Run, exact: Run
) -> dict[str, float]:
    """What is found where only the best documents by centroid score are scored: as few as keep
    RECALL of the ten best by the codes, of these very questions.
    """
    ranks = sorted(
        int((coarse[question] > coarse[question][place]).sum())
        for question, scores in full.items()
        for place in np.argsort(-scores, kind="stable")[:DEEPEST]
    )
    refined = ranks[int(RECALL * len(ranks))] + 1
    counts = np.diff(corpus.starts)
    scores: Scores = {}
    scored = 0
    for question, mine in full.items():
        kept = np.argsort(-coarse[question], kind="stable")[:refined]
        scored += int(counts[kept].sum())
        scores[question] = np.full(len(mine), mine.min() - 1)
        scores[question][kept] = mine[kept]
    run = ranked(scores, corpus.ids)
    return {
        "refined": refined,
        "tokens_refined": round(scored / len(full) / int(counts.sum()), 4),
        "overlap@10 with every document's codes": overlap(run, every),
        "overlap@10 with exact": overlap(run, exact),
    }


def bars(name: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    """One corpus' figures beside what they are to reach."""
    exact, tiers = found["exact"]["ndcg@10"], found["pool factors"]["1"]["tiers"]
    return [
        report.bar(f"{name}: exact MaxSim, nDCG@10", exact, least=PUBLISHED[name] - SLACK),
        *[
            report.bar(
                f"{name}: {tier} bytes, nDCG@10",
                tiers[str(tier)]["ndcg@10"],
                least=exact - loss,
            )
            for tier, loss in LOSS.items()
        ],
        report.bar(
            f"{name}: 32 bytes, overlap@10 with exact",
            tiers["32"]["overlap@10 with exact"],
            least=OVERLAP,
        ),
        report.bar(
            f"{name}: 8 bytes, bytes a token all told",
            tiers["8"]["bytes_per_source_token"],
            most=BYTES,
        ),
    ]


def main() -> None:
    """Measures, prints JSON and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=vectors.default_data())
    parser.add_argument("--out", type=Path, default=report.RESULTS)
    parser.add_argument("--pool-factors", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--corpora", nargs="+", default=list(PUBLISHED), choices=list(PUBLISHED))
    arguments = parser.parse_args()
    result: dict[str, Any] = {"benchmark": "tokens", "model": MODEL, **report.surroundings()}
    with running("auto", "auto", MODEL) as encoder:
        result["quality"] = {
            name: quality(encoder, arguments.data, name, arguments.pool_factors)
            for name in arguments.corpora
        }
    result["bars"] = [line for item in result["quality"].items() for line in bars(*item)]
    report.keep("tokens", result, arguments.out)


if __name__ == "__main__":
    main()
