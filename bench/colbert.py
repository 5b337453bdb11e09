"""Late interaction as it is served: SciFact's token vectors, two shards, through gRPC.

Question vectors are given, so that the encoder's time is not in it. The collection is stored with
vectors in fixed point, trains its codec by itself and flips; then every effort is asked, one
question at a time and with 16 in flight, and compared with exact MaxSim and with every document
scored by its codes: the first says what the codec loses, the second what pruning does.

With --documents, the corpus is resampled to a larger one (see `bench.late_scale`), whose
documents nobody has judged: then only pruning is measured.

Example:
    python -m bench.colbert --data ../shared/data
    python -m bench.colbert --data ../shared/data --documents 60000
"""

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
from ir_measures import nDCG

from bench import report, vectors
from bench.cluster import Cluster, running
from bench.encoder import running as running_encoder
from bench.exact_reference import read_qrels
from bench.late_scale import halves
from bench.tokens import MODEL, Encoded, Run, encoded, overlap, ranked
from shoal import Answer, Client
from shoal.client.model import CollectionInfo
from shoal.kernels.fixed import unit_rows

NAME, CORPUS = "papers", "scifact"
SHARDS, IN_FLIGHT, WARM_UP = 2, 16, 50
EFFORTS = ("low", "normal", "high", "exhaustive")
LATENCY_MS = {"p50": 6.0, "p99": 15.0}
LARGE_LATENCY_MS = {"p50": 10.0, "p99": 20.0}
"""What a question of `normal` effort may take, one at a time; of a resampled corpus."""
RECALL, REFINED = 0.99, 0.05
"""Overlap of `normal` with every document's codes, and the share of the tokens that it may refine
of a resampled corpus."""
PATIENCE_S = 3_600.0
SEED = 5


def larger(corpus: Encoded, documents: int) -> Encoded:
    """The corpus, and made documents up to a number."""
    known = len(corpus.ids)
    dice = np.random.default_rng(SEED)
    taken, starts = halves(corpus.starts, documents - known, dice)
    return Encoded(
        [*corpus.ids, *(f"made-{number}" for number in range(known, documents))],
        np.concatenate([corpus.rows, corpus.rows[taken]]),
        np.concatenate([corpus.starts, corpus.starts[-1] + starts[1:]]),
        corpus.queries,
    )


def stored(client: Client, corpus: Encoded) -> float:
    """Seconds to store every document's token vectors."""
    began = time.perf_counter()
    client.create_collection(
        NAME, "colbert", encoder="none", dim=corpus.rows.shape[1], shards=SHARDS
    )
    bounds = zip(corpus.ids, corpus.starts[:-1], corpus.starts[1:], strict=True)
    client.ingest(NAME, ({"id": key, "vector": corpus.rows[a:b]} for key, a, b in bounds))
    return time.perf_counter() - began


def flipped(client: Client, question: np.ndarray) -> tuple[CollectionInfo, float]:
    """The collection once its codec serves, and the seconds that took."""
    began = time.perf_counter()
    while client.search(NAME, vector=question, fields=()).generation == 1:
        if time.perf_counter() - began > PATIENCE_S:
            raise RuntimeError("no codec serves; see the controller's log")
        time.sleep(0.5)
    took = time.perf_counter() - began
    client.optimize(NAME)
    return next(each for each in client.status().collections if each.name == NAME), took


def exact_run(corpus: Encoded) -> Run:
    """Exact MaxSim."""
    rows = corpus.rows.astype(np.float32)
    scores = {
        key: np.maximum.reduceat(
            rows @ unit_rows(query).astype(np.float32).T, corpus.starts[:-1], axis=0
        ).sum(axis=1)
        for key, query in corpus.queries.items()
    }
    return ranked(scores, corpus.ids)


def asked(cluster: Cluster, corpus: Encoded, effort: str) -> dict[str, Any]:
    """Every judged question at one effort."""
    questions = list(corpus.queries.items())
    with cluster.connect() as client:

        def ask(query: np.ndarray) -> Answer:
            return client.search(NAME, vector=query, top_k=10, fields=(), effort=effort)

        for _, query in questions[:WARM_UP]:
            ask(query)
        times, answers = [], {}
        for key, query in questions:
            began = time.perf_counter()
            answers[key] = ask(query)
            times.append((time.perf_counter() - began) * 1e3)
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            began = time.perf_counter()
            list(pool.map(ask, [query for _, query in questions]))
            rate = len(questions) / (time.perf_counter() - began)
    first = next(iter(answers.values()))
    scored = np.mean([answer.timings.tokens_scored for answer in answers.values()])
    return {
        "run": {key: {hit.id: hit.score for hit in answer} for key, answer in answers.items()},
        "latency_ms": {
            name: round(float(np.percentile(times, share)), 2)
            for name, share in (("p50", 50), ("p99", 99))
        },
        "per_s_with_16_in_flight": round(rate, 1),
        "every_document_scored": first.timings.exhaustive,
        "tokens_scored": round(float(scored) / len(corpus.rows), 4),
    }


def measure(corpus: Encoded) -> dict[str, Any]:
    """One cluster, one collection."""
    question = next(iter(corpus.queries.values()))
    with running(shards=SHARDS, encoders=0) as cluster:
        with cluster.connect() as client:
            stored_s = stored(client, corpus)
            info, flip_s = flipped(client, question)
        efforts = {effort: asked(cluster, corpus, effort) for effort in EFFORTS}
        resident = cluster.resident_mib()
    by_codes = efforts["exhaustive"]["run"]
    for effort in efforts.values():
        effort["overlap@10 with every document's codes"] = overlap(effort["run"], by_codes)
    return {
        "documents": len(corpus.ids),
        "tokens": len(corpus.rows),
        "stored_s": round(stored_s, 1),
        "trained_copied_flipped_s": round(flip_s, 1),
        "codec": info.shards[0].codec,
        "token_bytes": round(sum(s.token_bytes for s in info.shards) / len(corpus.rows), 2),
        "calibrated": [
            {"effort": e.name, "probes": e.probes, "refined": e.refined, "recall": e.recall}
            for e in info.efforts
        ],
        "efforts": efforts,
        "resident_mib": resident,
    }


def judge(result: dict[str, Any], corpus: Encoded, data: Path) -> None:
    """Adds quality to what was measured, of exact MaxSim and of each effort."""
    judged, exact = read_qrels(data / CORPUS / "qrels" / "test.tsv"), exact_run(corpus)

    def quality(run: Run) -> float:
        return round(ir_measures.calc_aggregate([nDCG @ 10], judged, run)[nDCG @ 10], 4)

    result["exact ndcg@10"] = quality(exact)
    for effort in result["efforts"].values():
        effort["ndcg@10"] = quality(effort["run"])
        effort["overlap@10 with exact"] = overlap(effort["run"], exact)


def bars(normal: dict[str, Any], *, resampled: bool) -> list[dict[str, Any]]:
    """What `normal` is to reach."""
    latency = LARGE_LATENCY_MS if resampled else LATENCY_MS
    found = normal["overlap@10 with every document's codes"]
    lines = [
        *[
            report.bar(f"normal: {name} through gRPC, ms", normal["latency_ms"][name], most=most)
            for name, most in latency.items()
        ],
        report.bar("normal: overlap@10 with every document's codes", found, least=RECALL),
    ]
    if resampled:
        share = normal["tokens_scored"]
        lines.append(report.bar("normal: share of the tokens refined", share, most=REFINED))
    return lines


def main() -> None:
    """Measures, prints JSON and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=vectors.default_data())
    parser.add_argument("--out", type=Path, default=report.RESULTS)
    parser.add_argument("--documents", type=int, default=0)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"benchmark": "colbert", "model": MODEL, **report.surroundings()}
    with running_encoder("auto", "auto", MODEL) as encoder:
        corpus = encoded(encoder, arguments.data, CORPUS)
    resampled = arguments.documents > len(corpus.ids)
    if resampled:
        corpus = larger(corpus, arguments.documents)
    result |= measure(corpus)
    if not resampled:
        judge(result, corpus, arguments.data)
    for effort in result["efforts"].values():
        del effort["run"]
    result["bars"] = bars(result["efforts"]["normal"], resampled=resampled)
    report.keep("colbert-large" if resampled else "colbert", result, arguments.out)


if __name__ == "__main__":
    main()
