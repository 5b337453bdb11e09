"""Exact MaxSim over a token encoder's vectors, on the judged corpora: what late interaction gives.

One encoder process, asked over gRPC; documents whole, cut at the card's length. This is the
ceiling of what a quantised index of the same vectors can reach.

Example:
    python -m bench.tokens --data ../shared/data
"""

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
from ir_measures import R, nDCG
from numpy.typing import NDArray

from bench import report, vectors
from bench.encoder import BATCH, CALLS_IN_FLIGHT, DEPTH, TIMEOUT_S, Encoder, running
from bench.exact_reference import read_jsonl, read_qrels
from shoal.rpc.encoder.v1 import encoder_pb2
from shoal.wire.arrays import matrix_from_message

MODEL = "all-minilm-l6-v2-tokens"
PUBLISHED = {"scifact": 0.697, "nfcorpus": 0.343}
"""nDCG@10 of plain principal directions to 96 columns, the least that is wanted."""
SLACK = 0.002

Rows = NDArray[np.float32]


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


def quality(encoder: Encoder, data: Path, name: str) -> dict[str, Any]:
    """One corpus."""
    corpus = read_jsonl(data / name / "corpus.jsonl.gz")
    judged = read_qrels(data / name / "qrels" / "test.tsv")
    asked = [item for item in read_jsonl(data / name / "queries.jsonl.gz") if item["_id"] in judged]
    rows, starts = documents(encoder, corpus)
    run = {}
    for item, query in zip(asked, questions(encoder, [q["text"] for q in asked]), strict=True):
        best = np.maximum.reduceat(rows @ query.T, starts, axis=0)
        scores = best.sum(axis=1)
        order = np.argsort(-scores, kind="stable")[:DEPTH]
        run[item["_id"]] = {corpus[at]["_id"]: float(scores[at]) for at in order}
    measures = ir_measures.calc_aggregate([nDCG @ 10, R @ 100], judged, run)
    print(f"{name}: {measures}", file=sys.stderr, flush=True)
    return {
        "documents": len(corpus),
        "tokens": len(rows),
        "dim": rows.shape[1],
        "ndcg@10": round(measures[nDCG @ 10], 4),
        "recall@100": round(measures[R @ 100], 4),
    }


def main() -> None:
    """Measures, prints JSON and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=vectors.default_data())
    parser.add_argument("--out", type=Path, default=report.RESULTS)
    parser.add_argument("--corpora", nargs="+", default=list(PUBLISHED), choices=list(PUBLISHED))
    arguments = parser.parse_args()
    result: dict[str, Any] = {"benchmark": "tokens", "model": MODEL, **report.surroundings()}
    with running("auto", "auto", MODEL) as encoder:
        result["quality"] = {
            name: quality(encoder, arguments.data, name) for name in arguments.corpora
        }
    result["bars"] = [
        report.bar(
            f"{name}: exact MaxSim, nDCG@10", found["ndcg@10"], least=PUBLISHED[name] - SLACK
        )
        for name, found in result["quality"].items()
    ]
    report.keep("tokens", result, arguments.out)


if __name__ == "__main__":
    main()
