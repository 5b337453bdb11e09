"""`shoal eval`: retrieval quality and latency through the cluster."""

from __future__ import annotations

import importlib
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import shoal
from deploy.commands.beir import read_qrels, read_queries
from deploy.commands.output import (
    DEFAULT_TARGET,
    EXIT_FAILED,
    JsonOption,
    NameArgument,
    TargetOption,
    print_json,
)
from shoal.errors import InvalidRequest

if TYPE_CHECKING:
    from shoal import Answer, Client

DEPTH = 100
LONE_QUERIES = 100
IN_FLIGHT = 8
DEADLINE_S = 60.0

JudgedFile = Annotated[Path, typer.Option(metavar="FILE", exists=True, dir_okay=False)]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `shoal eval` found.

    Attributes:
        measures: nDCG@10, MRR@10 and recall@100, by their keys in the JSON.
        queries: judged queries that were searched.
        latencies_ms: of the lone queries, ascending.
        cached: share of the lone queries whose encoding was in the router's cache.
        truncated: queries that were cut at the encoder's length.
    """

    measures: dict[str, float]
    queries: int
    latencies_ms: list[float]
    cached: float
    truncated: int


def evaluate(
    name: NameArgument,
    queries: Annotated[
        Path,
        typer.Option(
            metavar="FILE", exists=True, dir_okay=False, help="BEIR queries.jsonl, plain or .gz."
        ),
    ],
    qrels: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Judgements: query-id, corpus-id, score; tabs, one header line.",
        ),
    ],
    target: TargetOption = DEFAULT_TARGET,
    json: JsonOption = False,
) -> None:
    """Measure nDCG@10, MRR@10, recall@100 and latency on judged queries.

    Only queries that the judgements name are searched, for 100 documents each.
    Up to 100 of them go first, one at a time: the latency is theirs, from call
    to answer in this process. Over-long queries are cut.

    Example: shoal eval papers --queries queries.jsonl.gz --qrels qrels/test.tsv
    """
    if importlib.util.find_spec("ir_measures") is None:
        typer.echo("`shoal eval` needs ir-measures: pip install 'shoal[eval]'", err=True)
        raise typer.Exit(EXIT_FAILED)
    judgements = read_qrels(qrels)
    questions = judged_questions(read_queries(queries), judgements, queries)
    with shoal.connect(target) as client:
        found = run(client, name, questions, judgements)
    if json:
        print_json(evaluation_json(found))
    else:
        typer.echo(evaluation_text(found))


def judged_questions(
    texts: dict[str, str], judgements: dict[str, dict[str, int]], file: Path
) -> dict[str, str]:
    """The words of the judged queries by id, in the judgements' order.

    Raises:
        InvalidRequest: there is none, or one has no words.
    """
    missing = [query_id for query_id in judgements if query_id not in texts]
    if missing or not judgements:
        raise InvalidRequest(
            f"{len(missing)} of {len(judgements)} judged queries are not in {file}, "
            f"such as {missing[:3]}",
            field="queries",
        )
    return {query_id: texts[query_id] for query_id in judgements}


def run(
    client: Client, name: str, questions: dict[str, str], judgements: dict[str, dict[str, int]]
) -> Evaluation:
    """Searches the lone queries one by one, then the others with several in flight."""

    def search(query_id: str) -> tuple[Answer, float]:
        started = time.perf_counter()
        answer = client.search(
            name,
            questions[query_id],
            top_k=DEPTH,
            fields=(),
            allow_truncation=True,
            deadline_s=DEADLINE_S,
        )
        return answer, (time.perf_counter() - started) * 1e3

    # The connection is not part of the first query's latency.
    client.status()
    lone, others = spread(list(questions), LONE_QUERIES)
    timed = [search(query_id) for query_id in lone]
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        rest = [answer for answer, _ in pool.map(search, others)]
    answers = [*(answer for answer, _ in timed), *rest]
    return Evaluation(
        measures=measured(dict(zip([*lone, *others], answers, strict=True)), judgements),
        queries=len(questions),
        latencies_ms=sorted(latency for _, latency in timed),
        cached=sum(answer.timings.encode_cached for answer, _ in timed) / len(timed),
        truncated=sum(answer.truncated for answer in answers),
    )


def spread(ids: list[str], count: int) -> tuple[list[str], list[str]]:
    """`count` ids at even distances, and the others, both in their order."""
    step = max(1.0, len(ids) / count)
    chosen = {int(place * step) for place in range(min(count, len(ids)))}
    return (
        [item for place, item in enumerate(ids) if place in chosen],
        [item for place, item in enumerate(ids) if place not in chosen],
    )


def measured(answers: dict[str, Answer], judgements: dict[str, dict[str, int]]) -> dict[str, float]:
    """Mean measures of ranked answers, by ir-measures (pytrec_eval, msmarco).

    Scorers sort again by float32 score and break ties by id their own way, so
    they are given the rank as the score.
    """
    measures: Any = importlib.import_module("ir_measures")
    wanted = {
        "ndcg@10": measures.nDCG @ 10,
        "mrr@10": measures.RR @ 10,
        "recall@100": measures.R @ 100,
    }
    ranked = {
        query_id: {hit.id: float(len(answer) - rank) for rank, hit in enumerate(answer)}
        for query_id, answer in answers.items()
    }
    values = measures.calc_aggregate(list(wanted.values()), judgements, ranked)
    return {key: float(values[measure]) for key, measure in wanted.items()}


def percentile(ascending: list[float], share: float) -> float:
    """The smallest value that `share` of all do not exceed (nearest rank)."""
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)]


def evaluation_json(found: Evaluation) -> dict[str, Any]:
    """The object of `shoal eval --json`."""
    return {
        **found.measures,
        "queries": found.queries,
        "latency_ms": {
            "p50": percentile(found.latencies_ms, 0.50),
            "p99": percentile(found.latencies_ms, 0.99),
            "queries": len(found.latencies_ms),
            "in_flight": 1,
            "top_k": DEPTH,
            "encode_cached": found.cached,
        },
    }


def evaluation_text(found: Evaluation) -> str:
    """The same for a person."""
    lines = [f"{key:<11} {value:.4f}" for key, value in found.measures.items()]
    lines.append(f"{'queries':<11} {found.queries}")
    lines.append(
        f"{'latency':<11} p50 {percentile(found.latencies_ms, 0.50):.1f} ms, "
        f"p99 {percentile(found.latencies_ms, 0.99):.1f} ms "
        f"({len(found.latencies_ms)} queries one at a time, top {DEPTH}, "
        f"{found.cached:.0%} with a cached encoding)"
    )
    if found.truncated:
        lines.append(f"{found.truncated} queries were cut at the encoder's length")
    return "\n".join(lines)


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("eval")(evaluate)
