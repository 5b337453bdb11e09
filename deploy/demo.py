"""`make demo`: a real cluster, a real corpus, real questions, and a clean end.

Example:
    python -m deploy.demo --no-ray
"""

import argparse
import tempfile
import time
from pathlib import Path

import shoal
from deploy import backend, cluster
from deploy.commands import evaluate
from deploy.commands.beir import CorpusReader, read_qrels, read_queries
from deploy.commands.explained import show_explained
from deploy.commands.output import show, show_answer, table
from shoal.client.model import CollectionInfo, IngestReport

CORPUS = Path(__file__).parent / "data" / "scifact-1000"
SINGLE, LATE = "scifact", "scifact-words"
QUESTIONS = 3
POLL_S = 0.5
# Exact search over the model's own vectors, in NumPy: `python -m bench.exact_reference`.
EXACT_NDCG_AT_10 = 0.795


def say(line: str) -> None:
    """One line of progress."""
    print(line, flush=True)  # noqa: T201


def main() -> None:
    """Starts a cluster in a temporary folder, shows it at work, ends it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-ray", action="store_true", help="plain processes instead of Ray")
    no_ray = parser.parse_args().no_ray
    with tempfile.TemporaryDirectory(prefix="shoal-demo-") as data:
        mode = backend.Mode.of(no_ray, "")
        options = backend.UpOptions(data=data, mode=mode, servers=2, encoders=1, routers=1, port=0)
        try:
            running = cluster.up(options, say)
            with shoal.connect(running.target) as client:
                show_cluster(client)
                # Without chunking, as the exact figure: one vector per abstract, cut at 256 tokens.
                client.create_collection(SINGLE, chunk_tokens=0)
                fill(client, SINGLE, "one vector each")
                ask(client)
                client.create_collection(LATE, "colbert", chunk_tokens=0)
                fill(client, LATE, "one vector per token")
                train(client)
                explain(client)
                judge(client)
        finally:
            cluster.down(data, say)
    say("The cluster is gone. Next: `shoal --help`, and the README's first search.")


def show_cluster(client: shoal.Client) -> None:
    """Prints what runs."""
    processes = table("process", "address", "pid")
    for process in client.status().processes:
        processes.add_row(process.name, process.address, str(process.pid or ""))
    show(processes)


def fill(client: shoal.Client, name: str, how: str) -> None:
    """Stores the bundled corpus."""
    say(f"\nStoring 1,000 abstracts of SciFact (CC BY 4.0, ODC-By 1.0), {how}: encode, log, index.")
    started = time.monotonic()
    told = started

    def progress(report: IngestReport) -> None:
        nonlocal told
        if time.monotonic() - told > 5:
            told = time.monotonic()
            say(f"  {report.documents} documents, {report.documents / (told - started):.0f}/s")

    reader = CorpusReader([CORPUS / "corpus.jsonl.gz"], lambda bad: say(f"  {bad.message}"))
    report = client.ingest(name, reader, progress=progress)
    say(f"  {report} in {time.monotonic() - started:.0f} s")


def ask(client: shoal.Client) -> None:
    """Shows the answers to some of the judged questions."""
    judged = read_qrels(CORPUS / "qrels.tsv")
    texts = read_queries(CORPUS / "queries.jsonl.gz")
    for question in [texts[query_id] for query_id in judged][:QUESTIONS]:
        say(f"\nQuestion: {question}")
        show_answer(client.search(SINGLE, question, top_k=3), question)


def train(client: shoal.Client) -> None:
    """Waits until the product quantiser serves, which the cluster trains by itself."""
    say("The vectors are kept whole until a codec fits them; the cluster trains it now:")
    started = time.monotonic()
    told = ""
    while (info := described(client, LATE)).generation == 1:
        built = next((each for each in info.generations if each.generation > 1), None)
        phase = "" if built is None else f"  generation {built.generation}: {built.phase}"
        if phase not in {"", told}:
            say(phase)
            told = phase
        time.sleep(POLL_S)
    size = sum(shard.token_bytes for shard in info.shards)
    tokens = sum(shard.tokens for shard in info.shards)
    say(
        f"  {tokens:,} tokens by {info.shards[0].codec}, {size / tokens:.1f} bytes each instead of "
        f"{info.dim * 4}, after {time.monotonic() - started:.0f} s"
    )


def described(client: shoal.Client, name: str) -> CollectionInfo:
    """A collection as `status` has it."""
    return next(each for each in client.status().collections if each.name == name)


def explain(client: shoal.Client) -> None:
    """Shows which words of the best hit matched those of a question."""
    judged = read_qrels(CORPUS / "qrels.tsv")
    question = read_queries(CORPUS / "queries.jsonl.gz")[list(judged)[QUESTIONS - 1]]
    say(f"\nWhy the first hit? {question}")
    best = client.search(LATE, question, top_k=1, fields=())
    why = client.explain(LATE, question, ids=[best[0].id])
    show_explained(why, question, json=False, page=None)


def judge(client: shoal.Client) -> None:
    """Measures all judged questions through the cluster, in both collections."""
    judged = read_qrels(CORPUS / "qrels.tsv")
    texts = read_queries(CORPUS / "queries.jsonl.gz")
    questions = {name: texts[name] for name in judged}
    say(f"\nAll {len(questions)} judged questions, through the cluster:")
    side = table("", "one vector each", "one per token")
    ours = [evaluate.run(client, name, questions, judged) for name in (SINGLE, LATE)]
    for measure in ours[0].measures:
        side.add_row(measure, *(f"{found.measures[measure]:.4f}" for found in ours))
    for name, share in (("p50", 0.50), ("p99", 0.99)):
        side.add_row(
            f"{name}, ms",
            *(f"{evaluate.percentile(found.latencies_ms, share):.1f}" for found in ours),
        )
    single, late = (described(client, name) for name in (SINGLE, LATE))
    side.add_row(
        "vectors, bytes",
        f"{sum(shard.passages for shard in single.shards) * single.dim * 4:,}",
        f"{sum(shard.token_bytes for shard in late.shards):,}",
    )
    show(side)
    say(f"Exact search over the model's own vectors, one each: nDCG@10 {EXACT_NDCG_AT_10}")


if __name__ == "__main__":
    main()
