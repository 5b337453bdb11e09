"""Search through a real router: answers, coverage, deadlines, faults."""

import numpy as np

from tests.wire.router_fakes import (
    DIM,
    Cluster,
    brute_force,
    text_request,
    text_vector,
    vector_request,
)

QUERY = np.linspace(-1, 1, DIM, dtype=np.float32)


async def test_a_vector_is_answered_from_every_shard() -> None:
    async with Cluster(shards=3) as cluster:
        filled = cluster.fill(50)
        reply = await cluster.search.Search(vector_request(QUERY, top_k=7))
        assert [hit.id for hit in reply.hits] == brute_force(filled, QUERY, 7)
        assert reply.coverage.shards_answered == 3
        assert reply.coverage.documents_covered == 50
        assert not reply.hits[0].title


async def test_a_text_is_encoded_and_its_documents_fetched() -> None:
    async with Cluster() as cluster:
        filled = cluster.fill(30)
        reply = await cluster.search.Search(text_request("salt", fields=[1, 2]))
        assert [hit.id for hit in reply.hits] == brute_force(filled, text_vector("salt"), 10)
        assert reply.hits[0].title == f"title of {reply.hits[0].id}"
