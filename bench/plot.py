"""Pictures of results, as SVG."""

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "shoal"

import matplotlib.pyplot as plt  # noqa: E402  (after the backend is chosen)


def single(result: dict[str, Any], path: Path) -> None:
    """Unary rate by calls in flight, and questions a second beside FAISS and the peers."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for name, label in (("echo", "no-op echo"), ("unary", "Shoal, unary")):
        levels = {int(level): run["rate_per_s"] for level, run in result[name].items()}
        left.plot([str(level) for level in levels], list(levels.values()), marker="o", label=label)
    left.set(xlabel="calls in flight", ylabel="calls a second", title="Unary gRPC", ylim=(0, None))
    left.legend()
    bars = {
        "raw FAISS, batches": max(result["faiss_queries_per_s"].values()),
        "Shoal, SearchBatch": result["batch"]["best_queries_per_s"],
        "Shoal, unary": max(run["rate_per_s"] for run in result["unary"].values()),
    }
    for name, peer in result.get("peers", {}).items():
        rates = [value for key, value in peer.items() if key.startswith("queries_per_s")]
        if rates:
            bars[f"{name} ({peer['how'].partition(',')[0]})"] = max(rates)
    names = sorted(bars, key=bars.__getitem__)
    drawn = right.barh(names, [bars[name] for name in names])
    right.bar_label(drawn, fmt="{:,.0f}", padding=3)
    right.set(xscale="log", xlabel="questions a second, best of its modes", title="Beside others")
    right.margins(x=0.2)
    documents, dim = result["data"]["shape"]
    cores = result["machine"]["cores"]
    figure.suptitle(f"{documents:,} x {dim}, top 10, recall@10 at least 0.99, {cores} cores")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def late(result: dict[str, Any], path: Path) -> None:
    """Latency against overlap with exact MaxSim, one curve per system."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, system in result["systems"].items():
        curve = system.get("curve", [])
        axes.plot(
            [point["overlap@10 with exact"] for point in curve],
            [point["p50_ms"] for point in curve],
            marker="o",
            label=name,
        )
    axes.set(xlabel="overlap@10 with exact MaxSim", ylabel="p50, ms", yscale="log")
    axes.set_title(f"{result['corpus']}: {result['tokens']:,} tokens, in process")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def late_scale(result: dict[str, Any], path: Path) -> None:
    """What a question of late interaction costs one shard, by tokens."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    sizes = list(result["sizes"].values())
    tokens = [size["tokens"] for size in sizes]
    for name, label in (("normal", "normal effort"), ("every_document", "every document")):
        axes.plot(tokens, [size[f"{name}_ms"]["p50"] for size in sizes], marker="o", label=label)
    axes.set(xlabel="tokens of the shard", ylabel="p50, ms, one core", xscale="log", yscale="log")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
