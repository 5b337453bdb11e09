"""The encoder service alone: its speed, its drift, and what chunking does to quality.

One encoder process, asked over gRPC. Quality is that of exact search over its
vectors (each document by its best passage), for chunkings of several sizes, on
the judged corpora: this is what the default chunking was chosen by. Where the
process has a GPU, that is what is measured; the result says so.

Example:
    python -m bench.encoder --data ../shared/data --chunkings 0/0 128/32 256/32
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import ir_measures
import numpy as np
from ir_measures import R, nDCG
from numpy.typing import NDArray

from bench import report, vectors
from bench.exact_reference import read_jsonl, read_qrels
from shoal.rpc.encoder.v1 import encoder_pb2, encoder_pb2_grpc
from shoal.wire.arrays import matrix_from_message

BATCH = 64
CALLS_IN_FLIGHT = 8
LONE_QUERIES = 200
TIMEOUT_S = 600.0
DEPTH = 100
MAX_MESSAGE_BYTES = 64 << 20

Rows = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Passages:
    """A corpus as it was encoded.

    Attributes:
        rows: [passages, dim].
        starts: [documents] first passage of each; every document has one at least.
        documents_per_s: encoded.
    """

    rows: Rows
    starts: NDArray[np.int64]
    documents_per_s: float


class Encoder:
    """A running encoder process with one model.

    Args:
        channel: to it.
    """

    def __init__(self, channel: grpc.Channel) -> None:
        self.stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        self.info = self.stub.GetInfo(encoder_pb2.GetInfoRequest(), timeout=TIMEOUT_S)
        self.model = self.info.models[0]

    def queries(self, texts: Sequence[str]) -> Rows:
        """[texts, dim]; over-long ones are cut."""
        request = encoder_pb2.EncodeQueriesRequest(
            fingerprint=self.model.fingerprint,
            texts=texts,
            allow_truncation=[True] * len(texts),
        )
        return matrix_from_message(self.stub.EncodeQueries(request, timeout=TIMEOUT_S).vectors)

    def corpus(self, documents: Sequence[dict[str, Any]], tokens: int, overlap: int) -> Passages:
        """All documents, several calls in flight."""
        began = time.perf_counter()
        with ThreadPoolExecutor(CALLS_IN_FLIGHT) as pool:
            replies = list(
                pool.map(
                    lambda batch: self._documents(batch, tokens, overlap),
                    [documents[at : at + BATCH] for at in range(0, len(documents), BATCH)],
                )
            )
        took_s = time.perf_counter() - began
        counts = np.array([count for reply in replies for count in reply.passage_counts])
        rows = np.concatenate([matrix_from_message(reply.vectors) for reply in replies])
        return Passages(rows, np.cumsum(counts) - counts, len(documents) / took_s)

    def _documents(
        self, documents: Sequence[dict[str, Any]], tokens: int, overlap: int
    ) -> encoder_pb2.EncodeDocumentsResponse:
        request = encoder_pb2.EncodeDocumentsRequest(
            fingerprint=self.model.fingerprint,
            documents=[
                encoder_pb2.DocumentText(title=item["title"], text=item["text"])
                for item in documents
            ],
            chunk_tokens=tokens,
            chunk_overlap=overlap,
        )
        return self.stub.EncodeDocuments(request, timeout=TIMEOUT_S)


@contextmanager
def running(device: str, precision: str, model: str = "all-minilm-l6-v2") -> Iterator[Encoder]:
    """An encoder process with as many threads as this one has cores."""
    environment = {
        **os.environ,
        "SHOAL_ENCODER_MODELS": model,
        "SHOAL_ENCODER_DEVICE": device,
        "SHOAL_ENCODER_PRECISION": precision,
        "SHOAL_ENCODER_THREADS": str(cores := len(os.sched_getaffinity(0))),
        # A GPU waits for words: tokenising costs 1 to 2 ms a document and core.
        "SHOAL_ENCODER_TOKENIZE_THREADS": str(max(1, cores // 2)),
    }
    read, write = os.pipe()
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as data:
        command = [sys.executable, "-m", "deploy.serve", "encoder", "encoder-0", f"--data={data}"]
        process = subprocess.Popen(
            [*command, f"--ready-fd={write}"], env=environment, pass_fds=[write], cwd=report.ROOT
        )
        os.close(write)
        try:
            with os.fdopen(read) as ready:
                address = ready.readline().strip()
            if not address:
                raise RuntimeError("the encoder did not start; its log is above")
            options = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)]
            with grpc.insecure_channel(address, options) as channel:
                yield Encoder(channel)
        finally:
            process.terminate()
            process.wait()


def accelerator(device: str) -> str:
    """The card's name; empty on a CPU."""
    if device == "cpu":
        return ""
    import torch  # noqa: PLC0415  (slow to load, and of no use on a CPU)

    return str(torch.cuda.get_device_name(device))


def speed(encoder: Encoder, questions: Sequence[str]) -> dict[str, Any]:
    """Lone queries and batches; nothing is cached here."""
    lone = [_ms(lambda text=text: encoder.queries([text])) for text in questions[:LONE_QUERIES]]
    batches = [questions[start : start + BATCH] for start in range(0, len(questions), BATCH)]
    began = time.perf_counter()
    with ThreadPoolExecutor(CALLS_IN_FLIGHT) as pool:
        list(pool.map(encoder.queries, batches))
    return {
        "lone_query_ms": {
            "p50": report.middle(lone),
            "p99": float(f"{np.percentile(lone, 99):.4g}"),
        },
        "queries_per_s": round(len(questions) / (time.perf_counter() - began), 1),
        "batch": BATCH,
        "calls_in_flight": CALLS_IN_FLIGHT,
    }


def _ms(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e3


def quality(
    encoder: Encoder, data: Path, name: str, chunkings: Sequence[tuple[int, int]]
) -> list[dict[str, Any]]:
    """One corpus under every chunking."""
    documents = read_jsonl(data / name / "corpus.jsonl.gz")
    judged = read_qrels(data / name / "qrels" / "test.tsv")
    questions = [
        item for item in read_jsonl(data / name / "queries.jsonl.gz") if item["_id"] in judged
    ]
    asked = encoder.queries([item["text"] for item in questions]).astype(np.float64)
    found = []
    for tokens, overlap in chunkings:
        passages = encoder.corpus(documents, tokens, overlap)
        scores = np.maximum.reduceat(
            asked @ passages.rows.astype(np.float64).T, passages.starts, axis=1
        )
        run = {
            question["_id"]: {
                documents[i]["_id"]: float(scores[row, i])
                for i in np.argsort(-scores[row], kind="stable")[:DEPTH]
            }
            for row, question in enumerate(questions)
        }
        measures = ir_measures.calc_aggregate([nDCG @ 10, R @ 100], judged, run)
        print(f"{name} {tokens}/{overlap}: {measures}", file=sys.stderr, flush=True)
        found.append(
            {
                "chunk_tokens": tokens,
                "overlap": overlap,
                "passages": len(passages.rows),
                "ndcg@10": round(measures[nDCG @ 10], 4),
                "recall@100": round(measures[R @ 100], 4),
                "documents_per_s": round(passages.documents_per_s, 1),
            }
        )
    return found


def _chunking(text: str) -> tuple[int, int]:
    tokens, _, overlap = text.partition("/")
    return int(tokens), int(overlap or 0)


def main() -> None:
    """Measures, prints JSON and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=vectors.default_data())
    parser.add_argument("--out", type=Path, default=report.RESULTS)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--corpora", nargs="+", default=list(vectors.CORPORA))
    parser.add_argument(
        "--chunkings", nargs="+", type=_chunking, default=[(0, 0), (128, 32), (256, 32)]
    )
    arguments = parser.parse_args()
    result: dict[str, Any] = {"benchmark": "encoder", **report.surroundings()}
    with running(arguments.device, arguments.precision) as encoder:
        result["encoder"] = {
            "device": encoder.info.device,
            "precision": encoder.model.precision,
            "accelerator": accelerator(encoder.info.device),
            "threads": encoder.info.threads,
            "batch_drift": encoder.model.batch_drift,
            "golden_drift": encoder.model.golden_drift,
            "golden_texts": encoder.model.golden_texts,
        }
        questions = [
            item["text"]
            for name in arguments.corpora
            for item in read_jsonl(arguments.data / name / "queries.jsonl.gz")
        ]
        result["speed"] = speed(encoder, questions)
        result["quality"] = {
            name: quality(encoder, arguments.data, name, arguments.chunkings)
            for name in arguments.corpora
        }
    report.keep(f"encoder-{result['encoder']['device'].partition(':')[0]}", result, arguments.out)


if __name__ == "__main__":
    main()
