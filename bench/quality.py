"""Retrieval quality through a real cluster, on SciFact and NFCorpus.

Words go in and words are asked: with Flat indexes and chunking off, and with
the default chunking. For HNSW and IVF-PQ the same documents go in with vectors
that the cluster's own encoder worker gave (the collection checks its
fingerprint), so that nothing is encoded twice; questions are words again.
Measures are ir-measures', through `shoal eval`'s own code.

Example:
    python -m bench.quality --data ../shared/data
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import grpc

from bench import report, vectors
from bench.cluster import running
from bench.measured import described, settled
from deploy.commands.beir import BadLine, CorpusReader, read_qrels, read_queries
from deploy.commands.evaluate import judged_questions, run
from shoal import Client
from shoal.rpc.encoder.v1 import encoder_pb2, encoder_pb2_grpc
from shoal.wire.arrays import matrix_from_message

EXPECTED = {"scifact": 0.645, "nfcorpus": 0.317}
TOLERANCE = 0.002
APPROXIMATE_LOSS = 0.005
ENCODE_BATCH = 64
ENCODE_TIMEOUT_S = 600.0
PIECES = {"flat": ("flat", 0), "chunked": ("flat", None)}
APPROXIMATE = ("hnsw", "ivf-pq")


def corpus(data: Path, name: str) -> Iterator[dict[str, Any]]:
    """A corpus' documents.

    Raises:
        ValueError: a line is no document.
    """

    def refuse(line: BadLine) -> NoReturn:
        raise ValueError(str(line))

    yield from CorpusReader([data / name / "corpus.jsonl.gz"], refuse)


def measure(data: Path, name: str, client: Client) -> dict[str, Any]:
    """Every collection of one corpus."""
    result: dict[str, Any] = {}
    for label, (index, chunk_tokens) in PIECES.items():
        client.create_collection(label, index=index, chunk_tokens=chunk_tokens)
        result[label] = _one(data, name, client, label, list(corpus(data, name)))
        client.drop_collection(label)
    vectored = with_vectors(data, name, client)
    for index in APPROXIMATE:
        client.create_collection(index, index=index, chunk_tokens=0)
        result[index] = _one(data, name, client, index, vectored)
        client.drop_collection(index)
    return result


def _one(
    data: Path, name: str, client: Client, label: str, documents: list[dict[str, Any]]
) -> dict[str, Any]:
    start = time.perf_counter()
    stored = client.ingest(label, documents)
    if stored.stored != len(documents):
        raise RuntimeError(f"not every document was stored: {stored}")
    ingested_s = time.perf_counter() - start
    client.optimize(label)
    qrels = read_qrels(data / name / "qrels" / "test.tsv")
    file = data / name / "queries.jsonl.gz"
    found = run(client, label, judged_questions(read_queries(file), qrels, file), qrels)
    info = settled(client, label)
    print(f"{name} {label}: {found.measures}", file=sys.stderr, flush=True)
    return {
        **{measure: round(value, 4) for measure, value in found.measures.items()},
        "queries": found.queries,
        "documents": info.documents,
        "passages": sum(shard.passages for shard in info.shards),
        "documents_truncated": stored.truncated,
        "chunk_tokens": info.chunk_tokens,
        "index": described(info),
        "ingest_s": round(ingested_s, 1),
    }


def with_vectors(data: Path, name: str, client: Client) -> list[dict[str, Any]]:
    """The documents with their vectors, from the cluster's encoder worker."""
    address = next(item.address for item in client.status().processes if item.role == "encoder")
    documents = list(corpus(data, name))
    with grpc.insecure_channel(address) as channel:
        encoder = encoder_pb2_grpc.EncoderServiceStub(channel)
        model = encoder.GetInfo(encoder_pb2.GetInfoRequest(), timeout=10).models[0]
        for start in range(0, len(documents), ENCODE_BATCH):
            chosen = documents[start : start + ENCODE_BATCH]
            request = encoder_pb2.EncodeDocumentsRequest(
                fingerprint=model.fingerprint,
                documents=[
                    encoder_pb2.DocumentText(title=item["title"], text=item["text"])
                    for item in chosen
                ],
            )
            reply = encoder.EncodeDocuments(request, timeout=ENCODE_TIMEOUT_S)
            rows = matrix_from_message(reply.vectors)
            for item, vector in zip(chosen, rows, strict=True):
                item["vector"] = vector
    return documents


def bars(name: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    """One corpus' figures beside what they are to reach."""
    flat = found["flat"]["ndcg@10"]
    distance = abs(flat - EXPECTED[name])
    return [
        report.bar(f"{name}: flat, |nDCG@10 - {EXPECTED[name]}|", distance, most=TOLERANCE),
        report.bar(f"{name}: default chunking, nDCG@10", found["chunked"]["ndcg@10"], least=flat),
        *[
            report.bar(
                f"{name}: {index}, |nDCG@10 - flat|",
                abs(found[index]["ndcg@10"] - flat),
                most=APPROXIMATE_LOSS,
            )
            for index in APPROXIMATE
        ],
    ]


def main() -> None:
    """Measures, prints JSON and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=vectors.default_data())
    parser.add_argument("--out", type=Path, default=report.RESULTS)
    parser.add_argument("--corpora", nargs="+", default=list(EXPECTED), choices=list(EXPECTED))
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "benchmark": "quality",
        **report.surroundings(),
        "split": "test",
        "hnsw_and_ivf_pq": "same documents, vectors from the cluster's encoder; questions in words",
    }
    with running(shards=2, encoders=1) as cluster, cluster.connect() as client:
        found = {name: measure(arguments.data, name, client) for name in arguments.corpora}
    result["corpora"] = found
    result["bars"] = [line for name in found for line in bars(name, found[name])]
    report.keep("quality", result, arguments.out)


if __name__ == "__main__":
    main()
