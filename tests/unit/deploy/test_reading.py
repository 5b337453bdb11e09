"""What `shoal top` computes from two scrapes."""

import math
from collections.abc import Mapping
from io import StringIO
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from deploy.commands import top
from deploy.core.reading import Change, Page, Scrape, quantile, read
from deploy.scraping import parse_page
from shoal.client.model import ClusterStatus, CollectionInfo, ProcessInfo, ShardInfo

SHARD = ShardInfo(1, "server-0", "serving", 5, 9, 4, 7, 100, 1.0, ("Flat",), "", "")
COLLECTION = CollectionInfo(
    "papers", "ab", "single", "cosine", 8, "none", "", "auto", 0, 0, 1, 5, (SHARD,)
)
STATUS = ClusterStatus(
    processes=(
        ProcessInfo("router-0", "router", "h:1", "serving", 7, 2, "", "h:2"),
        ProcessInfo("server-0", "server", "h:3", "serving", 8, 0),
    ),
    collections=(COLLECTION,),
    topology_version=3,
    limits={},
    version="0.1.0",
    controller_reachable=True,
)
ROUTER = """
shoal_router_queries_total{{outcome="ok"}} {ok}
shoal_router_queries_total{{outcome="failed"}} {failed}
shoal_router_query_cache_total{{result="hit"}} {hits}
shoal_router_query_cache_total{{result="miss"}} {misses}
shoal_router_open_queries {open}
shoal_router_ingested_documents_total{{outcome="INGEST_OUTCOME_STORED"}} {stored}
shoal_router_stage_seconds_bucket{{le="0.01",stage="total"}} {ok}
shoal_router_stage_seconds_bucket{{le="0.1",stage="total"}} {ok}
shoal_router_stage_seconds_bucket{{le="+Inf",stage="total"}} {ok}
shoal_router_stage_seconds_count{{stage="total"}} {ok}
"""
ENCODER = """
shoal_encoder_queue_texts{{lane="query"}} {waiting}
shoal_encoder_queue_texts{{lane="document"}} 0
shoal_encoder_batch_texts_count{{lane="query"}} {runs}
shoal_encoder_batch_texts_sum{{lane="query"}} {texts}
shoal_encoder_tokens_total{{lane="query"}} {texts}
"""


def router(**values: float) -> Page:
    names = ("ok", "failed", "hits", "misses", "open", "stored")
    return parse_page(ROUTER.format(**dict.fromkeys(names, 0) | values))


def encoder(**values: float) -> Page:
    return parse_page(ENCODER.format(**dict.fromkeys(("waiting", "runs", "texts"), 0) | values))


def scrape(at_s: float, pages: Mapping[str, Page]) -> Scrape:
    return Scrape(at_s, STATUS, pages)


def test_rates_and_shares_are_of_the_interval() -> None:
    before = scrape(10.0, {"router-0": router(ok=100, hits=50, misses=50, stored=7)})
    after = scrape(
        12.0,
        {
            "router-0": router(ok=120, failed=2, hits=53, misses=51, open=4, stored=17),
            "encoder-0": encoder(waiting=3, runs=9),
        },
    )
    reading = read(before, after)
    assert reading.seconds == 2.0
    assert reading.queries_per_s == {"ok": 10.0, "failed": 1.0}
    assert reading.cache_hit_share == 0.75
    assert reading.open_queries == 4
    assert reading.ingested_per_s == {"stored": 5.0}
    total = reading.stages["total"]
    assert total.per_s == 10.0
    assert total.p50_ms == pytest.approx(5.0)
    assert total.p99_ms == pytest.approx(9.9)
    query, document = reading.encoders
    assert (query.lane, query.queue_texts, query.batch_texts) == ("query", 3, None)
    assert (document.lane, document.queue_texts) == ("document", 0)
    assert [process.measured for process in reading.processes] == [True, False]
    [shard] = reading.shards
    assert (shard.collection, shard.shard, shard.passages, shard.position) == ("papers", 1, 9, 7)


def test_batches_are_averaged_over_encoders() -> None:
    before = scrape(0.0, {name: encoder() for name in ("encoder-0", "encoder-1")})
    after = scrape(
        1.0,
        {"encoder-0": encoder(runs=1, texts=8), "encoder-1": encoder(runs=3, texts=4, waiting=2)},
    )
    query, _ = read(before, after).encoders
    assert (query.batch_texts, query.tokens_per_s, query.queue_texts) == (3.0, 12.0, 2)


def test_nothing_observed_is_told_as_nothing() -> None:
    still = scrape(1.0, {"router-0": router(ok=5)})
    reading = read(still, still)
    assert reading.queries_per_s == {}
    assert reading.cache_hit_share is None
    assert reading.stages["total"].p50_ms is None
    assert reading.shard_search.p99_ms is None


@given(st.integers(0, 1000), st.integers(0, 1000), st.floats(0.1, 100.0, allow_nan=False))
def test_a_counter_never_runs_backwards(earlier: int, later: int, seconds: float) -> None:
    """A process that was started again counts from 0."""
    change = Change(
        scrape(0.0, {"router-0": router(ok=earlier)}),
        scrape(seconds, {"router-0": router(ok=later)}),
    )
    grown = later - earlier if later >= earlier else later
    assert change.per_s("shoal_router_queries_total") == pytest.approx(grown / seconds)


def test_a_process_that_is_new_adds_nothing_yet() -> None:
    change = Change(scrape(0.0, {}), scrape(1.0, {"router-0": router(ok=9)}))
    assert change.per_s("shoal_router_queries_total") == 0.0


@given(
    st.lists(st.integers(0, 50), min_size=2, max_size=6),
    st.lists(st.floats(0.0, 1.0), min_size=2, max_size=5),
)
def test_quantiles_ascend_and_lie_in_the_bucket_of_their_rank(
    observed: list[int], shares: list[float]
) -> None:
    bounds = [*(float(2**power) for power in range(len(observed) - 1)), math.inf]
    buckets = [(bound, float(sum(observed[: i + 1]))) for i, bound in enumerate(bounds)]
    found = [quantile(buckets, share) for share in sorted(shares)]
    if not sum(observed):
        assert found == [None] * len(shares)
        return
    values = [value for value in found if value is not None]
    assert len(values) == len(shares)
    assert all(low <= high for low, high in pairwise(values))
    assert all(0.0 <= value <= bounds[-2] for value in values)
    for share, value in zip(sorted(shares), values, strict=True):
        up_to = [count for bound, count in buckets if bound >= value]
        assert up_to[0] >= share * sum(observed) - 1e-9 or value == bounds[-2]


def test_the_view_shows_it() -> None:
    before = scrape(10.0, {"router-0": router(ok=100)})
    after = scrape(12.0, {"router-0": router(ok=120, hits=1, open=4)})
    page = StringIO()
    Console(file=page, width=120).print(top.view(read(before, after)))
    shown = page.getvalue()
    for expected in ("10.0 queries/s (ok 10.0)", "4 open", "cache hits 100%", "papers", "server-0"):
        assert expected in shown
    bare = read(scrape(0.0, {}), scrape(1.0, {}))
    assert "no process serves metrics" in top.headline(bare)
