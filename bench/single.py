"""Speed of single-vector search through a real cluster, beside its floor and its peers.

One run measures, on the same cores and the same vectors: a no-op unary echo
server, a no-op relay to two no-op servers, Shoal (one router, two shard
processes) and raw FAISS in process, interleaved and repeated, then the peers
(`--peers`). Questions are vectors, ten ids and scores come back, recall@10 is
checked through the API. Shoal caches encoded words, never vectors or answers:
each question is searched anew.

Example:
    python -m bench.single --peers
    python -m bench.single --quick --out /tmp/results
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import load, measured, peers_run, plot, report, vectors
from bench.cluster import running
from bench.faiss_baseline import build
from shoal import Client

TOP_K = 10
LEAST_RECALL = 0.99
BARS = {"unary": 0.6, "batch": 0.7, "alone": 3.5}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured.

    Attributes:
        count: documents.
        queries: questions.
        repeats: of everything, interleaved.
        seconds: of each measurement, whole.
        levels: calls in flight.
        batches: batches of 64 in flight.
        shards: shard processes.
        index: asked of Shoal.
    """

    count: int = 100_000
    queries: int = 1_000
    repeats: int = 3
    seconds: int = 5
    levels: tuple[int, ...] = (1, 16, 64, 256)
    batches: tuple[int, ...] = (1, 2, 4)
    shards: int = 2
    index: str = "ivf-pq"


FULL = Plan()
QUICK = Plan(count=2_000, queries=128, repeats=1, seconds=1, levels=(1, 16), batches=(1,))


def measure(plan: Plan, given: vectors.Vectors) -> dict[str, Any]:
    """Shoal, echo and FAISS."""
    exact = vectors.exact_neighbours(given.documents, given.queries, TOP_K)
    with running(shards=plan.shards, encoders=0) as cluster, cluster.connect() as client:
        idle_mib = cluster.resident_mib()
        filled = measured.fill(client, given.documents, plan.index)
        info = measured.settled(client, measured.NAME)
        found = measured.ask_all(client, given.queries, TOP_K)
        result: dict[str, Any] = {
            "shoal": {
                "processes": {"routers": 1, "shard_servers": plan.shards},
                "index": measured.described(info),
                "recall@10": round(vectors.recall(found, exact), 4),
                **_recall_of_questions(client, given),
                "ingest_s": round(filled.ingest_s, 1),
                "optimize_s": round(filled.optimize_s, 1),
                "resident_mib": cluster.resident_mib(),
                "resident_mib_empty": idle_mib,
            }
        }
        baseline = build(given, exact, info.shards[0].indexes[0], LEAST_RECALL)
        result["faiss"] = {
            "index": baseline.factory,
            "settings": baseline.settings,
            "recall@10": round(baseline.recall, 4),
            "threads": 2,
            "batch": measured.BATCH,
        }
        runs = measured.Runs(cluster, client, given.queries, baseline)
        reply_bytes = runs.reply_bytes()
        with measured.floors(reply_bytes["unary"], plan.shards) as floors:
            for _ in range(plan.repeats):
                runs.repeat(floors, plan.levels, plan.batches, plan.seconds)
        again = measured.ask_all(client, given.queries, TOP_K)
        result["checks"] = {
            "answers_same_after_load": again == found,
            "calls_refused": cluster.counter("shoal_router_refusals_total"),
            "http_failures": runs.failures,
            "reply_bytes_expected": reply_bytes,
            "reply_bytes_least": runs.reply_bytes_least,
        }
        return result | runs.medians()


def _recall_of_questions(client: Client, given: vectors.Vectors) -> dict[str, float]:
    """Recall of questions that are not like the documents, where there are some."""
    if not len(given.questions):
        return {}
    found = measured.ask_all(client, given.questions, TOP_K)
    exact = vectors.exact_neighbours(given.documents, given.questions, TOP_K)
    return {"recall@10_questions": round(vectors.recall(found, exact), 4)}


def bars(result: dict[str, Any], levels: tuple[int, ...]) -> list[dict[str, Any]]:
    """The run's ratios beside what they are to reach."""
    echo, unary = result["echo"], result["unary"]
    crowd = [str(level) for level in levels if level >= 64] or [str(levels[-1])]
    ratio = {level: unary[level]["rate_per_s"] / echo[level]["rate_per_s"] for level in crowd}
    best = result["batch"]["best_queries_per_s"] / max(result["faiss_queries_per_s"].values())
    alone = unary["1"]["p50_ms"] / echo["1"]["p50_ms"]
    return [
        report.bar("recall@10", result["shoal"]["recall@10"], least=LEAST_RECALL),
        *[
            report.bar(f"unary rate / echo rate, {level} in flight", share, least=BARS["unary"])
            for level, share in ratio.items()
        ],
        report.bar("SearchBatch of 64 / raw FAISS", best, least=BARS["batch"]),
        report.bar("p50 alone / echo p50 alone", alone, most=BARS["alone"]),
    ]


def main() -> None:
    """Measures, prints JSON, writes it and the plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=vectors.default_data())
    parser.add_argument("--out", type=Path, default=report.RESULTS)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--index", default=FULL.index, choices=["auto", "flat", "hnsw", "ivf-pq"])
    parser.add_argument("--repeats", type=int, default=FULL.repeats)
    parser.add_argument("--seconds", type=int, default=FULL.seconds)
    parser.add_argument("--quick", action="store_true", help="a small smoke run")
    parser.add_argument("--peers", action="store_true", help="measure the peers too")
    arguments = parser.parse_args()
    report.keep_to_cores(arguments.cores)
    surroundings = report.surroundings() | {"load_generator": load.version()}
    if arguments.quick:
        plan, given = QUICK, vectors.mixture(QUICK.count, QUICK.queries)
    else:
        plan = Plan(index=arguments.index, repeats=arguments.repeats, seconds=arguments.seconds)
        given = vectors.load(arguments.data, plan.count, plan.queries)
    result: dict[str, Any] = {
        "benchmark": "single",
        "quick": arguments.quick,
        **surroundings,
        "data": {
            **given.source,
            "shape": list(given.documents.shape),
            "top_k": TOP_K,
            "cached_answers": "none: vectors are never cached",
        },
        "repeats": plan.repeats,
        "seconds_each": plan.seconds,
        **measure(plan, given),
    }
    result["bars"] = bars(result, plan.levels)
    if arguments.peers:
        exact = vectors.exact_neighbours(given.documents, given.queries, TOP_K)
        result["peers"] = peers_run.run_all(given, exact, LEAST_RECALL, plan.seconds)
    report.keep("single", result, arguments.out)
    plot.single(result, arguments.out / "single.svg")


if __name__ == "__main__":
    main()
