"""What a cluster does with more than it can bear: refuses in time, and answers the rest in time.

Shards that sleep for a set time for each question (`bench.slowed`), so that the capacity is
far below what the router's cores bear, and the result does not depend on what else the
machine does. Then, open loop with Poisson arrivals (`shoal.loadtest`): the capacity, 0.8 to
10 times of it, a burst, and an ingest at full speed beside questions. The same for an
encoder with questions in words, and documents that are encoded beside them.

Example:
    python -m bench.overload
    python -m bench.overload --quick --out /tmp/results
"""

import argparse
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench import report, slowed
from bench.cluster import Cluster, running
from shoal import Client
from shoal.errors import Overloaded, ShoalError
from shoal.loadtest.core.report import Report
from shoal.loadtest.core.schedule import Step
from shoal.loadtest.driver import Progress, Setup
from shoal.loadtest.messages import Question, messages
from shoal.loadtest.pool import ClientPool

NAME = "overload"
DIM = 32
DEADLINE_S = 10.0
ECHO_IN_FLIGHT = 32
SATURATED = 3.0
TIMES = (0.8, 1.0, 2.0, 5.0, 10.0)
CALM = 0.5
RECOVERY_S = 5.0
RNG_SEED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured.

    Attributes:
        search_s: that a shard sleeps for each question.
        encode_s: that an encoder takes for each short text, at least.
        warm_up_s, step_s: of each load.
        burst_s: of ten times the capacity.
        documents: stored before.
    """

    search_s: float = 0.02
    encode_s: float = 0.04
    warm_up_s: float = 3.0
    step_s: float = 20.0
    burst_s: float = 3.0
    documents: int = 1_000


FULL = Plan()
QUICK = Plan(warm_up_s=1.0, step_s=3.0, burst_s=1.0, documents=100)


@dataclass(slots=True)
class Hints:
    """What a caller beside the load is told."""

    refused: int = 0
    typed: int = 0
    retry_after_s: list[float] = field(default_factory=list)


class Loads:
    """One cluster under one load after the other."""

    def __init__(self, cluster: Cluster, client: Client, questions: list[Question], plan: Plan):
        prepared = messages(NAME, questions, top_k=10, prefix="loadtest-")
        self._setup = Setup(cluster.target, prepared, 0.0, DEADLINE_S, 1, 0, 1)
        self._cluster, self._client, self._plan = cluster, client, plan
        self._question = questions[0]
        self._number = 0
        self.hints = Hints()

    def __enter__(self) -> "Loads":
        self._pool = ClientPool(self._setup).__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._pool.__exit__(*error)

    def run(self, rate: float, seconds: float, warm_up_s: float | None = None) -> dict[str, Any]:
        """One load; the figures that overload is about."""
        self._number += 1
        warm_up = self._plan.warm_up_s if warm_up_s is None else warm_up_s
        step = Step(self._number, seconds, warm_up, rate_per_s=rate)
        measured = self._pool.run(step, self._ask)
        return _figures(measured) | {"resident_mib": self._cluster.resident_mib()}

    def _ask(self, progress: Progress) -> None:
        """A caller of its own, with the real client: how is it refused?"""
        words = isinstance(self._question, str)
        asked = {"text": self._question} if words else {"vector": self._question}
        try:
            self._client.search(NAME, **asked, deadline_s=DEADLINE_S)
        except ShoalError as error:
            self.hints.refused += 1
            self.hints.typed += isinstance(error, Overloaded)
            self.hints.retry_after_s.append(error.retry_after_s or 0.0)


def _figures(measured: Report) -> dict[str, Any]:
    told = measured.as_json()
    return {
        name: told[name]
        for name in ("requests", "errors_by_code", "partial", "offered_qps", "goodput_qps")
    } | {
        "p50_ms": told["latency_ms"]["p50"],
        "p99_ms": told["latency_ms"]["p99"],
        "refusal_p99_ms": told.get("refusal_latency_ms", {}).get("p99"),
        "client_lag_p99_ms": told["client"]["lag_ms"]["p99"],
        "load_average": round(os.getloadavg()[0], 2),
    }


@contextmanager
def beside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Runs work on a thread until the block ends."""
    ended = threading.Event()
    thread = threading.Thread(target=work, args=(ended,))
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def overloaded(loads: Loads, plan: Plan, first_qps: float) -> dict[str, Any]:
    """Capacity, then every load against it, a burst, and what is left of the burst."""
    capacity = loads.run(SATURATED * first_qps, plan.step_s)["goodput_qps"]
    steps = {str(times): loads.run(times * capacity, plan.step_s) for times in TIMES}
    calm = loads.run(CALM * capacity, plan.step_s)
    burst = loads.run(max(TIMES) * capacity, plan.burst_s, 0.0)
    after = loads.run(CALM * capacity, plan.step_s, RECOVERY_S)
    return {
        "capacity_qps": capacity,
        "steps": steps,
        "calm": calm,
        "burst": burst,
        "after_burst": after,
        "hints": {
            "refused": loads.hints.refused,
            "typed": loads.hints.typed,
            "least_retry_after_s": round(min(loads.hints.retry_after_s, default=0.0), 3),
            "most_retry_after_s": round(max(loads.hints.retry_after_s, default=0.0), 3),
        },
    }


def shards(plan: Plan, echo_qps: float) -> dict[str, Any]:
    """Slowed shards; vectors given."""
    rng = np.random.default_rng(RNG_SEED)
    rows = rng.standard_normal((plan.documents, DIM)).astype(np.float32)
    questions: list[Question] = list(rng.standard_normal((200, DIM)).astype(np.float32))
    slow = slowed.environment(**{slowed.SEARCH_VARIABLE: str(plan.search_s)})
    with slow, running(shards=2, encoders=0) as cluster, cluster.connect() as client:
        client.create_collection(NAME, encoder="none", dim=DIM)
        client.ingest(NAME, ({"id": f"d{row}", "vector": each} for row, each in enumerate(rows)))
        with Loads(cluster, client, questions, plan) as loads:
            result = overloaded(loads, plan, 1 / plan.search_s)
            stored = 0

            def ingest(ended: threading.Event) -> None:
                nonlocal stored
                with cluster.connect() as writer:
                    while not ended.is_set():
                        batch = rng.standard_normal((500, DIM)).astype(np.float32)
                        documents = (
                            {"id": f"i{stored + row}", "vector": each}
                            for row, each in enumerate(batch)
                        )
                        stored += writer.ingest(NAME, documents).stored

            with beside(ingest):
                result["with_ingest"] = loads.run(CALM * result["capacity_qps"], plan.step_s)
    result["ingested_per_s"] = round(stored / (plan.step_s + plan.warm_up_s), 1)
    return result | {"echo_qps": echo_qps, "bars": bars("shards", result, echo_qps)}


def encoder(plan: Plan, echo_qps: float) -> dict[str, Any]:
    """One slowed encoder; questions in words, none of them cached."""
    texts = [f"What is known about subject {number}?" for number in range(500)]
    document = "Shoal answers which documents mean this over corpora that outgrow a process. " * 8
    slow = slowed.environment(
        SHOAL_ROUTER_CACHE_ENTRIES="0", **{slowed.ENCODE_VARIABLE: str(plan.encode_s)}
    )
    with slow, running(shards=1, encoders=1) as cluster, cluster.connect() as client:
        client.create_collection(NAME)
        client.ingest(
            NAME, [{"id": f"d{row}", "text": text} for row, text in enumerate(texts[:20])]
        )
        with Loads(cluster, client, list(texts), plan) as loads:
            result = overloaded(loads, plan, 1 / plan.encode_s)
            stored = 0

            def ingest(ended: threading.Event) -> None:
                nonlocal stored
                with cluster.connect() as writer:
                    while not ended.is_set():
                        documents = (
                            {"id": f"i{stored + row}", "text": f"{stored + row} {document}"}
                            for row in range(16)
                        )
                        stored += writer.ingest(NAME, documents).stored

            with beside(ingest):
                result["with_ingest"] = loads.run(CALM * result["capacity_qps"], plan.step_s)
    result["ingested_per_s"] = round(stored / (plan.step_s + plan.warm_up_s), 1)
    return result | {"bars": bars("encoder", result, echo_qps)}


def bars(what: str, result: dict[str, Any], echo_qps: float) -> list[dict[str, Any]]:
    """What the issue of overload wants, of one part of the cluster."""
    steps = result["steps"]
    peak = max(step["goodput_qps"] for step in steps.values())
    over = [steps[times] for times in ("2.0", "5.0", "10.0")]
    usual = steps["0.8"]["p99_ms"]
    resident = [step["resident_mib"]["router-0"] for step in steps.values()]
    refused = [step["refusal_p99_ms"] or 0.0 for step in over]
    hints, calm, after = result["hints"], result["calm"], result["after_burst"]
    hinted = hints["least_retry_after_s"] > 0 and hints["typed"] / hints["refused"]
    slower = {
        f"p99 at {times}x / p99 at 0.8x": (step["p99_ms"] / usual, 2.0)
        for times, step in zip((2, 5, 10), over, strict=True)
    }
    most = {
        "capacity / echo rate": (result["capacity_qps"] / echo_qps, 0.05),
        **slower,
        "refused at 2x to 10x, p99, ms": (max(refused), 10.0),
        "router's memory after 10x / after 0.8x": (resident[-1] / resident[0], 1.25),
        "p99 from 5 s after a burst of 10x / before": (after["p99_ms"] / calm["p99_ms"], 1.5),
        "failed from 5 s after a burst": (sum(after["errors_by_code"].values()), 0),
        "p99 beside an ingest / without": (
            result["with_ingest"]["p99_ms"] / calm["p99_ms"],
            2.0,
        ),
    }
    return [
        report.bar(f"{what}: goodput at 2x / peak", over[0]["goodput_qps"] / peak, least=0.9),
        report.bar(f"{what}: refusals that are OVERLOADED with a hint", float(hinted), least=1.0),
        *[
            report.bar(f"{what}: {name}", value, most=bound)
            for name, (value, bound) in most.items()
        ],
    ]


def echo_rate(seconds: float) -> float:
    """Calls a second of a server that does nothing, from the same client."""
    command = [sys.executable, "-m", "bench.echo", "--reply-bytes", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=report.ROOT) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            question: Question = np.ones(DIM, np.float32)
            asked = messages(NAME, [question], top_k=10, prefix="loadtest-")
            with ClientPool(Setup(address, asked, 0.0, DEADLINE_S, 1, 0, 1)) as pool:
                step = Step(0, seconds, 1.0, in_flight=ECHO_IN_FLIGHT)
                return pool.run(step, lambda _: None).goodput_qps
        finally:
            server.terminate()


def main() -> None:
    """Measures, prints JSON and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=report.RESULTS)
    parser.add_argument("--quick", action="store_true", help="a small smoke run")
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else FULL
    surroundings = report.surroundings()
    echo_qps = echo_rate(min(5.0, plan.step_s))
    parts = {"shards": shards(plan, echo_qps), "encoder": encoder(plan, echo_qps)}
    result: dict[str, Any] = {
        "benchmark": "overload",
        "quick": arguments.quick,
        **surroundings,
        "sleep_s": {"a question on a shard": plan.search_s, "a text in an encoder": plan.encode_s},
        "step_s": plan.step_s,
        "niceness": os.nice(0),
        "echo_qps": round(echo_qps, 1),
        "parts": parts,
        "bars": [line for part in parts.values() for line in part.pop("bars")],
    }
    report.keep("overload", result, arguments.out)


if __name__ == "__main__":
    main()
