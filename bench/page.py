"""Writes docs/performance.md from the last results, so that no figure is copied by hand.

Example:
    python -m bench.page
"""

import json
from pathlib import Path
from typing import Any

from bench import page_horizontal, page_late, page_overload
from bench.page_parts import bars, surroundings, table
from bench.report import RESULTS, ROOT

PAGE = ROOT / "docs" / "performance.md"
INTRODUCTION = """# Performance

Made by `python -m bench.page` from the last results in `bench/results`. Every figure comes from a
command; run it on your machine. Absolute rates move with the machine and with what else runs on
it: read the ratios, which are of one run on the same cores, load generator included.

| command | measures | takes, on 2 cores |
|---|---|---|
| `make bench-single` | search by vector: rate, latency, recall, memory; FAISS, peers | 25 min |
| `make bench-quality` | nDCG@10, MRR@10, recall@100 of SciFact and NFCorpus | 25 min |
| `make bench-ingest` | documents a second as a collection grows, fsyncs, memory | 3 min |
| `make bench-encoder` | one encoder: rate, drift, quality by chunking; a GPU if any | 40 min |
| `make bench-tokens` | exact MaxSim over token vectors of both corpora | 10 min |
| `make bench-colbert` | kind colbert through gRPC on SciFact: latency, recall, bytes | 15 min |
| `make bench-colbert-large` | the same with 60,000 documents resampled from it | 30 min |
| `make bench-late-peers` | kind colbert beside xtr-warp-rs and fast-plaid, in process | 2 h |
| `make bench-late-scale` | kind colbert by corpus size, to 300,000 documents | 15 min |
| `make bench-horizontal` | shards and routers that sleep: rate and tail by their number | 12 min |
| `make bench-ray-faults` | a Ray node killed, and Ray's head: what goes on, for how long | 10 min |
| `make bench-maxsim` | the MaxSim kernels: tokens a second on one core | 1 min |
| `make bench-overload` | up to ten times what slowed shards, or an encoder, can bear | 7 min |

`BENCH_DATA` names the folder that holds the two corpora in BEIR's layout; without it, single and
ingest use synthetic vectors, and say so. `make bench-single` wants h2load (Debian's
`nghttp2-client`), and installs its peers into `.bench-venv`.
"""
SINGLE_NOTES = """
How it is measured: h2load, a generator in C, posts framed gRPC bodies over at most 4 connections;
it reads its body anew for every call from a file that is overwritten 1,000 times a second with
another of the 1,000 questions. Vectors and answers are never cached, so each is searched. The
echo is the same server class, event loop and method in a process of its own, with a reply of the
same length and nothing done for it. The relay is such a server that first asks two others, one
call each per question: the hops of a search, without the search and without rounds. Raw FAISS
runs in process on the same index type, with its cheapest settings that reach the recall, on both
cores, in batches of 64; the better of OpenMP and one call per thread counts. h2load does not see
gRPC statuses: errors show in the bytes of the replies and in the router's own counters, and all
answers are compared before and after.
"""


def single(result: dict[str, Any]) -> str:
    """`make bench-single`."""
    documents, dim = result["data"]["shape"]
    cells = [
        (
            level,
            f"{result['echo'][level]['rate_per_s']:,.0f}",
            f"{result['relay'][level]['rate_per_s']:,.0f}",
            f"{run['rate_per_s']:,.0f}",
            f"{run['rate_per_s'] / result['echo'][level]['rate_per_s']:.2f}",
            f"{result['echo'][level]['p50_ms']:.2f}",
            f"{result['relay'][level]['p50_ms']:.2f}",
            f"{run['p50_ms']:.2f}",
            f"{run['p99_ms']:.2f}",
            f"{result['echo'][level]['echo_us_per_call']:.0f}",
            f"{run['router-0_us_per_call']:.0f}",
            f"{run['server-0_us_per_call']:.0f}",
        )
        for level, run in result["unary"].items()
    ]
    rates = ("in flight", "echo/s", "relay/s", "Shoal/s", "Shoal / echo")
    times = ("echo p50 ms", "relay p50 ms", "p50 ms", "p99 ms")
    costs = ("echo CPU us", "router CPU us", "each shard CPU us")
    shoal, faiss = result["shoal"], result["faiss"]
    clients = result["python_client"]
    return "\n".join(
        [
            "## Search, vectors given (`make bench-single`)\n",
            f"{surroundings(result)} {documents:,} x {dim} vectors "
            f"({result['data']['kind']}: {result['data']['documents']}), top 10, medians of "
            f"{result['repeats']} interleaved repeats of {result['seconds_each']} s.\n",
            bars(result),
            "",
            table((*rates, *times, *costs), cells),
            "",
            "![rates](../bench/results/single.svg)",
            SINGLE_NOTES,
            f"`SearchBatch` of 64: {result['batch']['best_queries_per_s']:,.0f} questions/s by "
            f"h2load, {clients['search_batch']['queries_per_s']:,.0f}/s through one Python client; "
            f"raw FAISS ({faiss['index']}, {faiss['settings']}, recall {faiss['recall@10']:.3f}) "
            f"{max(result['faiss_queries_per_s'].values()):,.0f}/s. One Python client, one "
            f"question at a time: p50 {clients['search']['p50_ms']:.2f} ms; the asyncio client "
            f"with 64 searches under way: {clients['aio_search_64_tasks']['rate_per_s']:,.0f}/s.\n",
            f"Shoal's index: {shoal['index']['segments']}, recall@10 through the API "
            f"{shoal['recall@10']:.4f}{_of_questions(shoal)}, "
            f"{shoal['index']['bytes'] / 2**20:,.0f} MiB of segments. "
            f"Resident memory, MiB: {shoal['resident_mib']} (empty: "
            f"{shoal['resident_mib_empty']}). Stored in {shoal['ingest_s']} s, optimised in "
            f"{shoal['optimize_s']} s.",
            *_peers(result),
        ]
    )


def _of_questions(shoal: dict[str, Any]) -> str:
    """Recall where it is harder to reach, and not tuned for."""
    if "recall@10_questions" not in shoal:
        return ""
    return (
        f" for held-out sentences, {shoal['recall@10_questions']:.4f} for the corpora's own "
        "questions, which are unlike the documents that the index was tuned on"
    )


def _peers(result: dict[str, Any]) -> list[str]:
    rows: list[tuple[object, ...]] = []
    for name, peer in result.get("peers", {}).items():
        if "error" in peer:
            rows.append((name, peer.get("how", ""), f"failed: {peer['error']}", *[""] * 5))
            continue
        rates = {key: value for key, value in peer.items() if key.startswith("queries_per_s")}
        unbatched = max(value for key, value in rates.items() if "batches" not in key)
        batched = rates.get("queries_per_s_batches_of_64")
        rows.append(
            (
                f"{name} {peer['version']}",
                peer["how"],
                f"{peer['index']}, {peer['settings']}",
                peer["recall@10"],
                f"{unbatched:,.0f}",
                "" if batched is None else f"{batched:,.0f}",
                peer["p50_alone_ms"],
                f"{peer['resident_mib']:,.0f}",
            )
        )
    if not rows:
        return []
    head = ("peer", "how", "settings", "recall@10", "questions/s", "in batches of 64")
    return [
        "\nPeers, same vectors, questions and cores, each at its first settings that reach the "
        "recall; questions/s is the best of 1, 4 and 16 threads. Libraries in process cross no "
        "network and keep no log.\n",
        table((*head, "p50 alone ms", "MiB"), rows),
    ]


def quality(result: dict[str, Any]) -> str:
    """`make bench-quality`."""
    rows = [
        (
            name,
            label,
            found["chunk_tokens"] or "off",
            f"{found['ndcg@10']:.4f}",
            f"{found['mrr@10']:.4f}",
            f"{found['recall@100']:.4f}",
            found["passages"],
        )
        for name, collections in result["corpora"].items()
        for label, found in collections.items()
    ]
    head = ("corpus", "collection", "chunk tokens", "nDCG@10", "MRR@10", "recall@100", "passages")
    return "\n".join(
        [
            "## Quality (`make bench-quality`)\n",
            f"{surroundings(result)} Test split, two shards, all-MiniLM-L6-v2. HNSW and IVF-PQ: "
            f"{result['hnsw_and_ivf_pq']}.\n",
            bars(result),
            "",
            table(head, rows),
        ]
    )


def ingest(result: dict[str, Any]) -> str:
    """`make bench-ingest`."""
    rows = [
        (
            f"{run['documents']:,}",
            f"{run['documents_per_s']:,.0f}",
            " ".join(f"{rate:,.0f}" for rate in run["documents_per_s_by_window"]),
            run["fsyncs"],
            f"{run['again_unchanged_per_s']:,.0f}",
            run["resident_mib"]["server-0"],
        )
        for run in result["runs"]
    ]
    head = ("documents", "documents/s", "by tenths of the run", "fsyncs", "again, unchanged/s")
    return "\n".join(
        [
            "## Storing (`make bench-ingest`)\n",
            f"{surroundings(result)} Vectors given, two shard servers, `auto` index; sealing and "
            "merging run meanwhile, on the same cores: until the first seal a run is faster, and "
            "10,000 documents may be stored before it. Whether the cost grows shows after that.\n",
            bars(result),
            "",
            table((*head, "MiB, one shard server"), rows),
        ]
    )


def ray_faults(result: dict[str, Any]) -> str:
    """`make bench-ray-faults`."""
    node = result["node_killed"]
    heads = "; ".join(
        f"with {each['reconnect_timeout_s']}, the raylets ended after "
        f"{each.get('raylet_ended_s', 'more')} s, and questions "
        + (
            f"failed after {each['questions_failed_s']} s"
            if "questions_failed_s" in each
            else f"still went on after {each['questions_went_on_s']:.0f} s"
        )
        for each in result["head_killed"]
    )
    return "\n".join(
        [
            "## Ray's own failures (`make bench-ray-faults`)\n",
            f"{surroundings(result)} Four raylets on this machine, two shard servers, one client "
            "that searches without a pause.\n",
            f"The node of one server killed: every answer whole again after "
            f"{node['whole_again_s']} s, the server on another node, {node['documents_lost']} "
            "documents lost. Ray's control service (GCS) killed for good, by "
            f"`RAY_gcs_rpc_server_reconnect_timeout_s`: {heads}.",
        ]
    )


SECTIONS = {
    "single": single,
    "quality": quality,
    "ingest": ingest,
    "tokens": page_late.tokens,
    "colbert": page_late.colbert,
    "colbert-large": page_late.colbert_large,
    "late-peers-scifact": page_late.peers,
    "late_scale": page_late.scale,
    "horizontal": page_horizontal.horizontal,
    "ray_faults": ray_faults,
    "overload": page_overload.overload,
}


def render(results: Path = RESULTS) -> str:
    """The page; a part without a result says which command makes it."""
    parts = [INTRODUCTION]
    for name, section in SECTIONS.items():
        file = results / f"{name}.json"
        if file.exists():
            parts.append(section(json.loads(file.read_text())) + "\n")
        else:
            command = name.removesuffix("-scifact").replace("_", "-")
            parts.append(f"## {command.capitalize()}\n\nNot measured: `make bench-{command}`.\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(render())
