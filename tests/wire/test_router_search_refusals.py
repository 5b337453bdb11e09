"""Questions that a real router refuses, each with its typed error."""

import asyncio
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shoal.rpc.common.v1 import common_pb2
from shoal.rpc.router.v1 import router_pb2
from shoal.settings import Limits
from shoal.wire.arrays import matrix_to_message
from shoal.wire.errors import from_rpc_error
from tests.wire.router_fakes import (
    DIM,
    MAX_BYTES,
    Cluster,
    text_request,
    vector_request,
)

QUERY = np.linspace(-1, 1, DIM, dtype=np.float32)


async def refused(call: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return from_rpc_error(raised.value)


def bad(**changes: Any) -> Any:
    request = vector_request(QUERY)
    for name, value in changes.items():
        if name in router_pb2.SearchOptions.DESCRIPTOR.fields_by_name:
            setattr(request.options, name, value)
        else:
            setattr(request, name, value)
    return request


def with_vector(rows: Any) -> Any:
    return router_pb2.SearchRequest(
        collection="papers", query=router_pb2.Query(vector=matrix_to_message(rows))
    )


BAD_REQUESTS = [
    (bad(collection="nothing"), "COLLECTION_NOT_FOUND"),
    (bad(collection="No Name"), "INVALID_NAME"),
    (bad(top_k=10**9), "INVALID_TOP_K"),
    (bad(min_coverage=1.5), "INVALID_REQUEST"),
    (bad(min_coverage=float("nan")), "INVALID_REQUEST"),
    (bad(request_id="x" * 65), "INVALID_REQUEST"),
    (bad(fingerprint="other"), "FINGERPRINT_MISMATCH"),
    (bad(after=b"nonsense"), "INVALID_REQUEST"),
    (vector_request(QUERY, fields=[9]), "INVALID_REQUEST"),
    (router_pb2.SearchRequest(collection="papers"), "EMPTY_TEXT"),
    (text_request(" \n"), "EMPTY_TEXT"),
    (text_request("x" * 2_000_000), "LIMIT_EXCEEDED"),
    (with_vector(np.ones((1, 3), np.float32)), "DIMENSION_MISMATCH"),
    (with_vector(np.full((1, DIM), np.inf, np.float32)), "NON_FINITE_VECTOR"),
    (with_vector(np.zeros((1, DIM), np.float32)), "ZERO_VECTOR"),
    (with_vector(np.ones((2, DIM), np.float32)), "INVALID_REQUEST"),
    (with_vector(np.ones((1, DIM), np.int8)), "MALFORMED_MESSAGE"),
]


async def test_bad_requests_have_typed_errors() -> None:
    async with Cluster(similarity=common_pb2.SIMILARITY_COSINE) as cluster:
        cluster.fill(5)
        for request, reason in BAD_REQUESTS:
            error = await refused(cluster.search.Search(request))
            assert error.reason == reason, error
        assert (await cluster.search.Search(bad(top_k=0))).hits


async def test_without_an_encoder_words_are_not_understood() -> None:
    async with Cluster(encoders=0) as cluster:
        cluster.fill(5)
        error = await refused(cluster.search.Search(text_request("salt")))
        assert error.reason == "TEXT_NOT_SUPPORTED"


async def test_bytes_that_are_no_message_are_refused() -> None:
    async with Cluster() as cluster:
        for method in ("Search", "SearchBatch", "Get", "Delete"):
            raw = cluster.channel.unary_unary(f"/shoal.rpc.router.v1.SearchService/{method}")
            for data in (b"\x12\x02\xff\xfe", b"\xff\xff\xff"):
                error = await refused(raw(data))
                assert error.reason == "MALFORMED_MESSAGE", method


async def test_a_message_too_large_is_refused() -> None:
    async with Cluster() as cluster:
        error = await refused(cluster.search.Search(text_request("x" * (MAX_BYTES + 1))))
        assert error.reason == "LIMIT_EXCEEDED"
        assert (await cluster.search.Search(vector_request(QUERY))).coverage.shards_answered == 2


async def test_a_reply_too_large_asks_for_less() -> None:
    limits = Limits(max_message_bytes=4_000)
    async with Cluster(limits=limits) as cluster:
        cluster.fill(300)
        error = await refused(cluster.search.Search(vector_request(QUERY, top_k=300)))
        assert error.reason in ("LIMIT_EXCEEDED", "INSUFFICIENT_COVERAGE")
        error = await refused(cluster.search.Search(vector_request(QUERY, top_k=140)))
        assert error.metadata["limit"] == "max_message_bytes"


async def test_it_does_not_serve_before_it_knows_a_topology() -> None:
    cluster = Cluster()
    cluster.publish = lambda: None  # type: ignore[method-assign]
    async with cluster:
        health = health_pb2_grpc.HealthStub(cluster.channel)
        status = await health.Check(health_pb2.HealthCheckRequest())
        assert status.status == health_pb2.HealthCheckResponse.NOT_SERVING
        error = await refused(cluster.search.Search(vector_request(QUERY)))
        assert error.reason == "NOT_READY"
        Cluster.publish(cluster)
        async with asyncio.timeout(5):
            async for status in health.Watch(health_pb2.HealthCheckRequest()):
                if status.status == health_pb2.HealthCheckResponse.SERVING:
                    break
        assert (await cluster.search.Search(vector_request(QUERY))).coverage.shards_total == 2
