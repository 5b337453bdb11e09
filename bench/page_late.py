"""The late interaction's part of docs/performance.md."""

from collections.abc import Iterator
from typing import Any

from bench.page_parts import bars, surroundings, table


def tokens(result: dict[str, Any]) -> str:
    """`make bench-tokens`."""
    rows = [row for name, corpus in result["quality"].items() for row in _kept(name, corpus)]
    head = ("corpus", "pool factor", "kept by", "bytes a source token", "nDCG@10")
    lost = ("loss and its error", "overlap@10 with exact")
    pruned = ("refined for 0.99 of the codes' ten best", "then overlap@10 with exact")
    return "\n".join(
        [
            "## Late interaction: what the codec loses (`make bench-tokens`)\n",
            f"{surroundings(result)} Exact MaxSim in NumPy, then every document's codes, then "
            "only those of the best documents by centroid score. Columns are mapped: what lies "
            "on disk is what memory holds once all was touched.\n",
            bars(result),
            "",
            table((*head, *lost, *pruned, "training + encoding, s"), rows),
        ]
    )


def _kept(name: str, corpus: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    yield name, 1, "exact", 2 * corpus["dim"], f"{corpus['exact']['ndcg@10']:.4f}", *[""] * 5
    for factor, found in corpus["pool factors"].items():
        exact = found["exact"]
        if factor != "1":
            size = round(2 * corpus["dim"] * found["tokens"] / corpus["tokens"], 1)
            quality = (f"{exact['ndcg@10']:.4f}", "", f"{exact['overlap@10 with exact']:.3f}")
            yield name, factor, "exact", size, *quality, *[""] * 3
        for code_bytes, tier in found["tiers"].items():
            lost = tier["ndcg@10 lost"]
            yield (
                name,
                factor,
                f"{code_bytes} bytes",
                tier["bytes_per_source_token"],
                f"{tier['ndcg@10']:.4f}",
                f"{lost['mean']:.4f} ± {lost['standard_error']:.4f}",
                f"{tier['overlap@10 with exact']:.3f}",
                *_pruned(tier.get("pruned")),
                f"{tier['trained_s']:.0f} + {tier['encoded_s']:.0f}",
            )


def _pruned(found: dict[str, Any] | None) -> tuple[str, str]:
    if found is None:
        return "", ""
    return (
        f"{found['refined']} ({found['tokens_refined']:.1%} of the tokens)",
        f"{found['overlap@10 with exact']:.3f}",
    )


def colbert(result: dict[str, Any]) -> str:
    """`make bench-colbert`."""
    rows = [
        (
            *_served(name, found),
            f"{found['ndcg@10']:.4f}",
            f"{found['overlap@10 with exact']:.3f}",
            f"{found[_BY_CODES]:.4f}",
        )
        for name, found in result["efforts"].items()
    ]
    return "\n".join(
        [
            "## Late interaction as it is served (`make bench-colbert`)\n",
            f"{surroundings(result)} SciFact, {_built(result)} Exact MaxSim: nDCG@10 "
            f"{result['exact ndcg@10']}.\n",
            bars(result),
            "",
            table((*_SERVED, "nDCG@10", "overlap@10 with exact", _SAME), rows),
        ]
    )


def colbert_large(result: dict[str, Any]) -> str:
    """`make bench-colbert-large`."""
    rows = [
        (*_served(name, found), f"{found[_BY_CODES]:.4f}")
        for name, found in result["efforts"].items()
    ]
    return "\n".join(
        [
            "## Late interaction, a larger collection (`make bench-colbert-large`)\n",
            f"{surroundings(result)} {result['documents']:,} documents: SciFact's, and more made "
            f"of halves of its token matrices; {_built(result)}\n",
            bars(result),
            "",
            table((*_SERVED, _SAME), rows),
        ]
    )


_BY_CODES = "overlap@10 with every document's codes"
_SAME = "with every document's codes"
_SERVED = ("effort", "p50, ms", "p99, ms", "a second, 16 in flight", "tokens scored")


def _served(effort: str, found: dict[str, Any]) -> tuple[object, ...]:
    latency, rate = found["latency_ms"], found["per_s_with_16_in_flight"]
    return effort, latency["p50"], latency["p99"], rate, f"{found['tokens_scored']:.1%}"


def _built(result: dict[str, Any]) -> str:
    return (
        f"{result['tokens']:,} token vectors given, two shards, through gRPC; "
        f"{result['token_bytes']} bytes a token; storing took {result['stored_s']} s, training, "
        f"copying, calibrating and flipping {result['trained_copied_flipped_s']} s after it."
    )


def peers(result: dict[str, Any]) -> str:
    """`make bench-late-peers`."""
    rows = [
        (
            name,
            ", ".join(f"{key} {value}" for key, value in point["settings"].items()) or "defaults",
            point["p50_ms"],
            point["p99_ms"],
            point["per_s_alone"],
            point["per_s_with_16_in_flight"],
            f"{point['ndcg@10']:.4f}",
            f"{point['overlap@10 with exact']:.3f}",
            system["bytes_per_token"],
            system["build_s"],
            system["resident_mib"],
        )
        for name, system in result["systems"].items()
        for point in system.get("curve", [])
    ]
    failed = [
        f"{name}: {system['error']}" for name, system in result["systems"].items()
        if "error" in system
    ]  # fmt: skip
    head = ("system", "settings", "p50, ms", "p99, ms", "a second", "16 in flight", "nDCG@10")
    exact = result["exact, NumPy"]
    return "\n".join(
        [
            "## Late interaction beside its peers (`make bench-late-peers`)\n",
            f"{surroundings(result)} {result['corpus']}, {result['tokens']:,} token vectors, in "
            "process, one thread unless said. Shoal refines that many documents; 0 is every one. "
            f"Exact MaxSim in NumPy: p50 {exact['p50_ms']} ms, nDCG@10 {exact['ndcg@10']}. "
            f"Published, not run here: TACHIOM, {result['published']['TACHIOM']}.\n",
            "![latency against overlap](../bench/results/late-peers-scifact.svg)\n",
            *([bars(result), ""] if "bars" in result else []),
            *failed,
            table((*head, "overlap@10", "bytes a token", "build, s", "MiB"), rows),
        ]
    )


def scale(result: dict[str, Any]) -> str:
    """`make bench-late-scale`."""
    rows = [
        (
            f"{int(size):,}",
            f"{found['tokens']:,}",
            found["disk_bytes_per_token"],
            found["open_s"],
            found["resident_mib_open"],
            found["resident_mib_asked"],
            f"{found['refined']:,}",
            f"{found['tokens_refined']:.2%}",
            found["normal_ms"]["p50"],
            found["every_document_ms"]["p50"],
        )
        for size, found in result["sizes"].items()
    ]
    largest = max(result["sizes"].values(), key=lambda found: int(found["tokens"]))
    each = largest["normal_ms"]["p50"] / largest["tokens"] * 1e6
    head = ("documents", "tokens", "bytes a token", "open, s", "MiB opened", "MiB asked")
    return "\n".join(
        [
            "## Late interaction by size (`make bench-late-scale`)\n",
            f"{surroundings(result)} One shard in process, one core, real token matrices halved "
            "and paired; what 99 % of the ten best need to be refined is measured.\n",
            "![cost by size](../bench/results/late_scale.svg)\n",
            table((*head, "refined", "of the tokens", "p50, ms", "every document, ms"), rows),
            "",
            f"At {each:.2f} ms per million tokens and core, nearly all of it the scan of "
            "centroid numbers, a question that is to take 50 ms wants "
            f"{1_000 * each / 50:,.0f} cores for a billion tokens: as many shards, each with "
            f"{50 / each:,.0f} million tokens, "
            f"{50 / each * largest['disk_bytes_per_token']:,.0f} MB on disk and as much in "
            "memory once asked. All together they keep "
            f"{largest['disk_bytes_per_token']:.1f} GB.",
        ]
    )
