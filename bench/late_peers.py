"""Late interaction beside its peers: in process, one thread, the same token vectors.

Peers run in a virtual environment of their own (`make bench-late-peers`), one after the other,
each over its own settings from cheap to dear. Indexes are kept in `.cache/bench`, for a peer's
takes up to half an hour to build; what that took is in the result.

Example:
    python -m bench.late_peers --data ../shared/data --corpus scifact
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
from ir_measures import nDCG

from bench import plot, report, vectors
from bench.encoder import running as running_encoder
from bench.exact_reference import read_qrels
from bench.tokens import CACHE, MODEL, Encoded, Run, encoded, overlap, ranked
from shoal.kernels.fixed import unit_rows

PYTHON = report.ROOT / ".bench-late" / "bin" / "python"
TIMEOUT_S = 7_200
SYSTEMS: dict[str, tuple[str, list[str]]] = {
    "shoal, 4 bytes": ("shoal", ["--code-bytes=4"]),
    "shoal, 8 bytes": ("shoal", []),
    "shoal, 32 bytes": ("shoal", ["--code-bytes=32"]),
    "xtr-warp-rs": ("xtr_warp", []),
    "xtr-warp-rs, 2 threads": ("xtr_warp", ["--threads=2"]),
    "fast-plaid": ("fast_plaid", []),
}
FASTER_THAN_XTR, FASTER_THAN_PLAID, SMALLER = 5.0, 50.0, 9.0
PLAID_OVERLAP = 0.95
PUBLISHED = {
    "TACHIOM": "LoTTE-pooled, 660 M tokens: 38 bytes a token, 48 all in; cannot be built here",
}


def run(name: str, system: str, options: list[str], corpus: str, file: Path) -> dict[str, Any]:
    """One system's figures, or what went wrong with it."""
    folder = CACHE / f"late-{system}-{corpus}{''.join(o for o in options if 'code' in o)}"
    python = sys.executable if system == "shoal" else str(PYTHON)
    module = f"bench.late.run_{system}"
    command = [python, "-m", module, f"--vectors={file}", f"--folder={folder}", *options]
    print(f"{name}: {module}", file=sys.stderr, flush=True)
    threads = "2" if "--threads=2" in options else "1"
    done = subprocess.run(
        ["env", f"OMP_NUM_THREADS={threads}", *command],
        cwd=report.ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        return {"error": f"exit status {done.returncode}"}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def exact(corpus: Encoded) -> tuple[Run, dict[str, Any]]:
    """Exact MaxSim in NumPy: what it finds, and how long it takes."""
    rows, scores, times = corpus.rows.astype(np.float32), {}, []
    for key, query in corpus.queries.items():
        started = time.perf_counter()
        similar = rows @ unit_rows(query).astype(np.float32).T
        scores[key] = np.maximum.reduceat(similar, corpus.starts[:-1], axis=0).sum(axis=1)
        times.append((time.perf_counter() - started) * 1e3)
    return ranked(scores, corpus.ids), {
        "p50_ms": report.middle(times),
        "bytes_per_token": 2 * rows.shape[1],
    }


def judge(found: dict[str, Any], corpus: Encoded, judged: Any, best: Run) -> None:
    """Puts quality and size in place of what was found."""
    if "error" in found:
        return
    found["bytes_per_token"] = round(found.pop("disk_bytes") / len(corpus.rows), 2)
    for point in found["curve"]:
        answers = point.pop("found")
        ranking = {
            key: {corpus.ids[document]: -float(rank) for rank, document in enumerate(documents)}
            for key, documents in zip(corpus.queries, answers, strict=True)
        }
        measured = ir_measures.calc_aggregate([nDCG @ 10], judged, ranking)
        point["ndcg@10"] = round(measured[nDCG @ 10], 4)
        point["overlap@10 with exact"] = overlap(ranking, best)


def bars(systems: dict[str, Any]) -> list[dict[str, Any]]:
    """Shoal's rate beside each peer's settings, at equal or better quality."""
    lines = []
    ours, warp, plaid = (systems[name] for name in ("shoal, 8 bytes", "xtr-warp-rs", "fast-plaid"))
    for point in warp.get("curve", [])[:3]:
        name = f"8 bytes: queries/s beside xtr-warp-rs {point['settings'] or 'defaults'}, times"
        lines.append(report.bar(name, _times(ours, point), least=FASTER_THAN_XTR))
    if "curve" in warp:
        name = "8 bytes: bytes a token beside xtr-warp-rs, times fewer"
        smaller = warp["bytes_per_token"] / ours["bytes_per_token"]
        lines.append(report.bar(name, smaller, least=SMALLER))
    if "curve" in plaid:
        defaults = plaid["curve"][-1]
        at = {"ndcg@10": 0.0, "overlap@10 with exact": PLAID_OVERLAP}
        name = f"32 bytes: queries/s at overlap {PLAID_OVERLAP} beside fast-plaid's defaults, times"
        lines.append(
            report.bar(
                name, _times(systems["shoal, 32 bytes"], defaults | at), least=FASTER_THAN_PLAID
            )
        )
    return lines


def _times(ours: dict[str, Any], point: dict[str, Any]) -> float:
    """Our best rate at a point's quality or better, by the point's; 0 where none is as good."""
    good = [
        each["per_s_alone"]
        for each in ours["curve"]
        if each["ndcg@10"] >= point["ndcg@10"]
        and each["overlap@10 with exact"] >= point["overlap@10 with exact"]
    ]
    return max(good, default=0.0) / float(point["per_s_alone"])


def main() -> None:
    """Measures, prints JSON, writes it and the plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=vectors.default_data())
    parser.add_argument("--out", type=Path, default=report.RESULTS)
    parser.add_argument("--corpus", default="scifact")
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    arguments = parser.parse_args()
    result: dict[str, Any] = {"benchmark": "late_peers", "model": MODEL, **report.surroundings()}
    with running_encoder("auto", "auto", MODEL) as encoder:
        corpus = encoded(encoder, arguments.data, arguments.corpus)
        file = CACHE / f"tokens-{arguments.corpus}-{encoder.model.fingerprint[:16]}.npz"
    judged = read_qrels(arguments.data / arguments.corpus / "qrels" / "test.tsv")
    best, numpy = exact(corpus)
    numpy["ndcg@10"] = round(ir_measures.calc_aggregate([nDCG @ 10], judged, best)[nDCG @ 10], 4)
    result |= {"corpus": arguments.corpus, "documents": len(corpus.ids)}
    result |= {"tokens": len(corpus.rows), "exact, NumPy": numpy, "published": PUBLISHED}
    systems = {
        name: run(name, *SYSTEMS[name], arguments.corpus, file) for name in arguments.systems
    }
    for found in systems.values():
        judge(found, corpus, judged, best)
    result["systems"] = systems
    if set(systems) == set(SYSTEMS):
        result["bars"] = bars(systems)
    name = f"late-peers-{arguments.corpus}"
    plot.late(result, arguments.out / f"{name}.svg")
    report.keep(name, result, arguments.out)


if __name__ == "__main__":
    main()
