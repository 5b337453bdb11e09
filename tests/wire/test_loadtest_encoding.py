"""Questions to vectors before a load test: an encoder of the cluster is asked, in batches."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from shoal.client.model import ClusterStatus, CollectionInfo, ProcessInfo
from shoal.errors import EmptyText, EncoderUnavailable
from shoal.loadtest.encoding import BATCH, encoded
from shoal.rpc.common.v1 import common_pb2
from shoal.rpc.encoder.v1 import encoder_pb2, encoder_pb2_grpc
from shoal.wire.arrays import matrix_to_message
from shoal.wire.errors import to_status

DIM = 4
FINE = common_pb2.Status()
REFUSED = to_status(EmptyText("there are no words"))


class FakeEncoder(encoder_pb2_grpc.EncoderServiceServicer):
    """A text's rows hold its length; one row, or with `late` as many as it has letters."""

    def __init__(self) -> None:
        self.late = False
        self.batches: list[int] = []

    def EncodeQueries(self, request, context):  # noqa: N802 - bears the name of its RPC
        self.batches.append(len(request.texts))
        counts = [len(text) if self.late else 1 for text in request.texts]
        rows = np.repeat([float(len(text)) for text in request.texts], counts)
        return encoder_pb2.EncodeQueriesResponse(
            vectors=matrix_to_message(np.tile(rows[:, np.newaxis], DIM).astype(np.float32)),
            row_counts=counts if self.late else [],
            statuses=[REFUSED if text == "bad" else FINE for text in request.texts],
        )


@pytest.fixture
def encoder() -> Iterator[tuple[str, FakeEncoder]]:
    servicer = FakeEncoder()
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        encoder_pb2_grpc.add_EncoderServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}", servicer
        server.stop(0).wait()


def collection() -> CollectionInfo:
    return CollectionInfo(
        name="papers",
        uuid="",
        kind="single",
        similarity="cosine",
        dim=DIM,
        encoder="e",
        fingerprint="f" * 64,
        index="auto",
        chunk_tokens=0,
        chunk_overlap=0,
        generation=1,
        documents=0,
        shards=(),
    )


def status(address: str, state: str = "serving") -> ClusterStatus:
    process = ProcessInfo("encoder-0", "encoder", address, state, 1, 0, "")
    return ClusterStatus((process,), (), 1, {}, "0", True)


def test_one_vector_for_each_text(encoder: tuple[str, FakeEncoder]) -> None:
    address, servicer = encoder
    texts = ["x" * (1 + n % 5) for n in range(BATCH + 3)]
    vectors = encoded(status(address), collection(), texts)
    assert servicer.batches == [BATCH, 3]
    assert [vector.tolist() for vector in vectors] == [[float(len(text))] * DIM for text in texts]


def test_one_matrix_for_each_text_of_late_interaction(encoder: tuple[str, FakeEncoder]) -> None:
    address, servicer = encoder
    servicer.late = True
    matrices = encoded(status(address), collection(), ["xx", "x", "xxx"])
    assert [matrix.shape for matrix in matrices] == [(2, DIM), (1, DIM), (3, DIM)]


def test_what_cannot_be_encoded_is_an_error(encoder: tuple[str, FakeEncoder]) -> None:
    address, _ = encoder
    with pytest.raises(EmptyText):
        encoded(status(address), collection(), ["good", "bad"])
    with pytest.raises(EncoderUnavailable, match="shoal status"):
        encoded(status(address, "dead"), collection(), ["good"])
