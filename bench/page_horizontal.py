"""Growing sideways: its part of docs/performance.md."""

from typing import Any

import numpy as np

from bench.page_parts import bars, surroundings, table


def horizontal(result: dict[str, Any]) -> str:
    """`make bench-horizontal`."""
    seconds = result["seconds"]
    rows = [
        (
            shards,
            found["model"]["questions_per_s"],
            *(run["questions_per_s"] for run in found["routers"].values()),
            found["alone"]["p50_ms"],
            found["alone"]["p99_ms"],
            f"{found['alone']['met_a_slow_shard']:.1%}",
            f"{found['model']['met_a_slow_shard']:.1%}",
        )
        for shards, found in result["asleep"].items()
    ]
    routers = next(iter(result["asleep"].values()))["routers"]
    rates = ("shards", "model, a second", *(f"{count} routers, a second" for count in routers))
    times = ("p50 alone, ms", "p99 alone, ms", "met a slow shard", "model")
    return "\n".join(
        [
            "## Growing sideways (`make bench-horizontal`)\n",
            f"{surroundings(result)} A question keeps a shard asleep for "
            f"{seconds['fixed'] * 1e3:g} ms and {seconds['part'] * 1e3:g} ms times its share of "
            f"the documents, one at a time, and one in {1 / result['slow_share']:.0f} for "
            f"{seconds['slow'] * 1e3:g} ms more. The model: one slot a shard; a question meets "
            "a slow shard by independent chances.\n",
            bars(result),
            "",
            table((*rates, *times), rows),
            "",
            *_processor_time(result["awake"]),
        ]
    )


def _processor_time(awake: dict[str, Any]) -> list[str]:
    rows = [
        (shards, found["questions_per_s"], used["router-0"], _middle_server(used))
        for shards, found in awake.items()
        for used in [found["processor_us_per_question"]]
    ]
    counts = np.array([float(shards) for shards, *_ in rows])
    each, fixed = np.polyfit(counts, [router for _, _, router, _ in rows], 1)
    server = float(np.median([row[3] for row in rows]))
    pays = _second_level(fixed, each)
    return [
        "Without sleep, on this machine's cores, processor time of one question:\n",
        table(("shards", "questions a second", "router, us", "each shard server, us"), rows),
        "",
        f"A router spends about {fixed:.0f} us on a question and {each:.0f} us more for each "
        f"shard; a shard server {server:.0f} us. So N cores bear about N x 1e6 / ({fixed:.0f} + "
        f"S x ({each:.0f} + {server:.0f})) questions a second over S shards, one router being one "
        f"core: {1e6 / (fixed + each * 2):,.0f} a second at two shards, "
        f"{1e6 / (fixed + each * 16):,.0f} at sixteen, and more routers for more. A second level "
        f"of routers, of the square root of S each, shortens a question's way from about {pays} "
        "shards on, and costs more processor time in all; Shoal has one level.",
    ]


def _middle_server(used: dict[str, int]) -> float:
    return float(np.median([us for name, us in used.items() if name.startswith("server-")]))


def _second_level(fixed: float, each: float) -> str:
    """Shards from which two levels in a row take less time than one: fixed + each S against
    twice (fixed + each sqrt(S)).
    """
    counts = np.arange(2, 100_000)
    shorter = fixed + each * counts > 2 * (fixed + each * np.sqrt(counts))
    return f"{counts[int(shorter.argmax())]}" if shorter.any() else "more than 100,000"
