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
from deploy.commands.output import show, show_answer, table
from shoal.client.model import IngestReport

CORPUS = Path(__file__).parent / "data" / "scifact-1000"
COLLECTION = "scifact"
QUESTIONS = 3
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
                fill(client)
                ask(client)
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


def fill(client: shoal.Client) -> None:
    """Stores the bundled corpus."""
    # Without chunking, as the exact figure: one vector per abstract, cut at 256 tokens.
    client.create_collection(COLLECTION, chunk_tokens=0)
    say("Storing 1,000 abstracts of SciFact (CC BY 4.0, ODC-By 1.0): encode, log, index.")
    started = time.monotonic()
    told = started

    def progress(report: IngestReport) -> None:
        nonlocal told
        if time.monotonic() - told > 5:
            told = time.monotonic()
            say(f"  {report.documents} documents, {report.documents / (told - started):.0f}/s")

    reader = CorpusReader([CORPUS / "corpus.jsonl.gz"], lambda bad: say(f"  {bad.message}"))
    report = client.ingest(COLLECTION, reader, progress=progress)
    say(f"  {report} in {time.monotonic() - started:.0f} s")


def ask(client: shoal.Client) -> None:
    """Shows the answers to some of the judged questions."""
    judged = read_qrels(CORPUS / "qrels.tsv")
    texts = read_queries(CORPUS / "queries.jsonl.gz")
    for question in [texts[query_id] for query_id in judged][:QUESTIONS]:
        say(f"\nQuestion: {question}")
        show_answer(client.search(COLLECTION, question, top_k=3), question)


def judge(client: shoal.Client) -> None:
    """Measures all judged questions through the cluster."""
    judged = read_qrels(CORPUS / "qrels.tsv")
    texts = read_queries(CORPUS / "queries.jsonl.gz")
    found = evaluate.run(client, COLLECTION, {name: texts[name] for name in judged}, judged)
    say(f"\nAll {found.queries} judged questions, through the cluster:")
    say(evaluate.evaluation_text(found))
    say(f"Exact search over the model's own vectors: nDCG@10 {EXACT_NDCG_AT_10}")


if __name__ == "__main__":
    main()
