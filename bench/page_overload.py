"""The part of docs/performance.md about overload."""

from typing import Any

from bench.page_parts import bars, surroundings, table

HEAD = ("offered / capacity", "offered/s", "answered/s", "refused", "p50 ms", "p99 ms")


def overload(result: dict[str, Any]) -> str:
    """`make bench-overload`."""
    sleeps = ", ".join(
        f"{what} {value * 1_000:.0f} ms" for what, value in result["sleep_s"].items()
    )
    return "\n".join(
        [
            "## Overload (`make bench-overload`)\n",
            f"{surroundings(result)} Open loop, Poisson arrivals, {result['step_s']:.0f} s each. "
            f"The slowed processes sleep ({sleeps}), so the other work of the machine (load "
            f"average {_loads(result)}, niceness of the run {result['niceness']}) is in the tails "
            "alone; the echo rate of the "
            f"same client is {result['echo_qps']:,.0f}/s. Times are from the moment at which a "
            "question was meant to leave; of refusals from the moment at which it left.\n",
            bars(result),
            *[part for name, found in result["parts"].items() for part in _part(name, found)],
        ]
    )


def _part(name: str, found: dict[str, Any]) -> list[str]:
    loads = {
        **{f"{float(times):g}": step for times, step in found["steps"].items()},
        "0.5": found["calm"],
        "10, a burst": found["burst"],
        "0.5, from 5 s after it": found["after_burst"],
        f"0.5, beside {found['ingested_per_s']:,.0f} documents/s": found["with_ingest"],
    }
    rows = [
        (
            label,
            f"{step['offered_qps']:.1f}",
            f"{step['goodput_qps']:.1f}",
            step["errors_by_code"].get("RESOURCE_EXHAUSTED", 0),
            f"{step['p50_ms']:.0f}",
            f"{step['p99_ms']:.0f}",
            "" if step["refusal_p99_ms"] is None else f"{step['refusal_p99_ms']:.1f}",
            step["resident_mib"]["router-0"],
        )
        for label, step in loads.items()
    ]
    what = "Slowed shards" if name == "shards" else "A slowed encoder"
    return [
        f"\n{what}: {found['capacity_qps']:.1f} answers/s at most.\n",
        table((*HEAD, "refused in, p99 ms", "router MiB"), rows),
    ]


def _loads(result: dict[str, Any]) -> str:
    seen = [
        step["load_average"]
        for found in result["parts"].values()
        for step in found["steps"].values()
    ]
    return f"{min(seen):g} to {max(seen):g}"
