"""Builds the bundled demo corpus from BEIR's SciFact folder.

Keeps every document that a test question is judged on, and fills up with others
by sample rank, so the result depends on nothing but the input.

Example:
    python tools/make_demo_corpus.py path/to/scifact deploy/data/scifact-1000
"""

import argparse
import csv
import gzip
import json
from pathlib import Path
from typing import Any

from shoal.ids import sample_rank

DOCUMENTS = 1000


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a gzip-compressed JSON Lines file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write_gzip(path: Path, text: str) -> None:
    """Compresses without name and time: the same text gives the same bytes."""
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def main() -> None:
    """Reads SOURCE, writes TARGET."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    qrels_text = (arguments.source / "qrels/test.tsv").read_text()
    judged = list(csv.DictReader(qrels_text.splitlines(), delimiter="\t"))
    relevant = {row["corpus-id"] for row in judged}
    asked = {row["query-id"] for row in judged}
    documents = read_jsonl(arguments.source / "corpus.jsonl.gz")
    others = sorted(
        (document["_id"] for document in documents if document["_id"] not in relevant),
        key=lambda identifier: sample_rank(identifier.encode()),
    )
    kept = relevant | set(others[: DOCUMENTS - len(relevant)])
    arguments.target.mkdir(parents=True, exist_ok=True)

    def lines(objects: list[dict[str, Any]], keep: set[str]) -> str:
        return "".join(
            json.dumps(item, ensure_ascii=False) + "\n" for item in objects if item["_id"] in keep
        )

    write_gzip(arguments.target / "corpus.jsonl.gz", lines(documents, kept))
    queries = read_jsonl(arguments.source / "queries.jsonl.gz")
    write_gzip(arguments.target / "queries.jsonl.gz", lines(queries, asked))
    (arguments.target / "qrels.tsv").write_text(qrels_text)


if __name__ == "__main__":
    main()
