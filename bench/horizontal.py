"""What more shards and more routers give, where two cores do not hide it: shards that sleep.

A question costs each shard a fixed time and a part that shrinks with the shard's share of the
documents, both spent asleep, one question at a time (`bench.slowed`); one in a hundred takes much
longer, by chance. So the cores are free, and what is seen is the system's own: the rate against
the number of shards and routers, and how often a question meets a slow shard. The model is that of
a queue with one slot per shard, and of independent chances (Dean and Barroso, The tail at scale,
2013). Then, without sleep, the processor time of a question in each process, from which
`docs/performance.md` says what other numbers of cores would bear.

Example:
    python -m bench.horizontal
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench import report, slowed
from bench.cluster import Cluster, running
from shoal.loadtest.core.schedule import Step
from shoal.loadtest.driver import Progress, Setup
from shoal.loadtest.messages import messages
from shoal.loadtest.pool import ClientPool

NAME, DIM, DOCUMENTS, QUESTIONS = "vectors", 16, 4_000, 200
SHARDS, ROUTERS = (1, 2, 4, 8, 16), (1, 2, 4)
FIXED_S, PART_S = 0.01, 0.08
"""A question's time on a shard: the first, and the second times the shard's share."""
SLOW_SHARE, SLOW_S = 0.01, 0.15
"""By chance a question takes a shard this much longer."""
IN_FLIGHT, WARM_UP_S, STEP_S, ALONE = 8, 2.0, 12.0, 300
CORES_MAX = 0.6
DICE = np.random.default_rng(11)
ROWS = DICE.standard_normal((DOCUMENTS, DIM)).astype(np.float32)
ASKED = DICE.standard_normal((QUESTIONS, DIM)).astype(np.float32)


@contextmanager
def filled(shards: int, routers: int, *, asleep: bool) -> Iterator[Cluster]:
    """A cluster with the documents in it."""
    search_s = FIXED_S + PART_S / shards
    variables = {
        slowed.SEARCH_VARIABLE: str(search_s),
        slowed.SLOW_SHARE_VARIABLE: str(SLOW_SHARE),
        slowed.SLOW_VARIABLE: str(SLOW_S),
    }
    with (
        slowed.environment(**(variables if asleep else {}), SHOAL_SHARD_SEARCH_THREADS="1"),
        running(shards=shards, encoders=0, routers=routers) as cluster,
    ):
        with cluster.connect() as client:
            client.create_collection(NAME, encoder="none", dim=DIM, index="flat", shards=shards)
            client.ingest(NAME, ({"id": f"d{n}", "vector": row} for n, row in enumerate(ROWS)))
        yield cluster


def busy(cluster: Cluster, targets: Sequence[str]) -> dict[str, Any]:
    """The rate with so many callers, shared out over the routers, and what the processes use."""
    prepared = messages(NAME, list(ASKED), top_k=10, prefix="loadtest-")
    step = Step(0, STEP_S, WARM_UP_S, in_flight=IN_FLIGHT // len(targets))
    setups = [Setup(target, prepared, 0.0, 30.0, 1, 0, 1) for target in targets]
    with ExitStack() as stack:
        pools = [stack.enter_context(ClientPool(setup)) for setup in setups]
        before, began = cluster.cpu_s(), time.monotonic()
        with ThreadPoolExecutor(len(pools)) as threads:
            told = list(threads.map(lambda pool: pool.run(step, _unwatched), pools))
        seconds, after = time.monotonic() - began, cluster.cpu_s()
    answered = sum(each.goodput_qps for each in told)
    used = {name: (after[name] - before[name]) / seconds for name in after}
    clients = sum(sum(each.processor_shares) for each in told)
    return {
        "questions_per_s": round(answered, 1),
        "failed": sum(each.errors for each in told),
        "share_of_cores": round((sum(used.values()) + clients) / len(os.sched_getaffinity(0)), 3),
        "processor_us_per_question": {
            name: round(share / answered * 1e6) for name, share in sorted(used.items())
        },
    }


def _unwatched(_: Progress) -> None:
    """Nobody looks."""


def alone(cluster: Cluster, search_s: float) -> dict[str, Any]:
    """One question at a time: its time, and how often it met a slow shard."""
    times = []
    with cluster.connect() as client:
        for number in range(ALONE):
            began = time.perf_counter()
            client.search(NAME, vector=ASKED[number % QUESTIONS], top_k=10, fields=())
            times.append(time.perf_counter() - began)
    met = np.array(times) > search_s + SLOW_S / 2
    return {
        "p50_ms": round(float(np.percentile(times, 50)) * 1e3, 1),
        "p99_ms": round(float(np.percentile(times, 99)) * 1e3, 1),
        "met_a_slow_shard": round(float(met.mean()), 3),
    }


def asleep(shards: int) -> dict[str, Any]:
    """One number of shards, with each number of routers."""
    search_s = FIXED_S + PART_S / shards
    found: dict[str, Any] = {
        "model": {
            "questions_per_s": round(1 / (search_s + SLOW_SHARE * SLOW_S), 1),
            "met_a_slow_shard": round(1 - (1 - SLOW_SHARE) ** shards, 3),
        },
        "routers": {},
    }
    for routers in ROUTERS:
        with filled(shards, routers, asleep=True) as cluster:
            targets = router_addresses(cluster)
            found["routers"][str(routers)] = busy(cluster, targets)
            if routers == 1:
                found["alone"] = alone(cluster, search_s)
    print(f"{shards} shards: {found}", file=sys.stderr, flush=True)
    return found


def router_addresses(cluster: Cluster) -> list[str]:
    """Where each router listens."""
    with cluster.connect() as client:
        return [each.address for each in client.status().processes if each.role == "router"]


def awake(shards: int) -> dict[str, Any]:
    """One number of shards that do not sleep: processor time by process."""
    with filled(shards, 1, asleep=False) as cluster:
        used = busy(cluster, router_addresses(cluster))
    print(f"{shards} shards, awake: {used}", file=sys.stderr, flush=True)
    return used


def bars(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What the run has to be, to show anything."""
    runs = [run for each in result["asleep"].values() for run in each["routers"].values()]
    return [
        report.bar(
            "asleep: share of the cores used, most",
            max(run["share_of_cores"] for run in runs),
            most=CORES_MAX,
        ),
        report.bar("asleep: failed questions", sum(run["failed"] for run in runs), most=0),
    ]


def main() -> None:
    """Measures, prints JSON and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=report.RESULTS)
    parser.add_argument("--shards", type=int, nargs="+", default=SHARDS)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"benchmark": "horizontal", **report.surroundings()}
    result["seconds"] = {"fixed": FIXED_S, "part": PART_S, "slow": SLOW_S}
    result["slow_share"] = SLOW_SHARE
    result["asleep"] = {str(shards): asleep(shards) for shards in arguments.shards}
    result["awake"] = {str(shards): awake(shards) for shards in arguments.shards}
    result["bars"] = bars(result)
    report.keep("horizontal", result, arguments.out)


if __name__ == "__main__":
    main()
