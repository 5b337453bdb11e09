"""The router's Prometheus metrics. Label sets are bounded."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Counter, Gauge, Histogram

from shoal.errors import (
    CorruptLog,
    CorruptSegment,
    DeadlineExceeded,
    DiskFull,
    InsufficientCoverage,
    InternalError,
    Overloaded,
    ShardUnavailable,
    ShoalError,
)

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

queries = Counter("shoal_router_queries_total", "Questions answered", ["outcome"])
stage_seconds = Histogram(
    "shoal_router_stage_seconds", "Time in each stage of a question", ["stage"], buckets=_SECONDS
)
cache = Counter("shoal_router_query_cache_total", "Look-ups of encoded questions", ["result"])
round_queries = Histogram(
    "shoal_router_round_queries", "Questions of a round", ["lane"], buckets=_SIZES
)
missing_shards = Counter(
    "shoal_router_missing_shards_total", "Shards that did not take part in an answer", ["reason"]
)
refusals = Counter("shoal_router_refusals_total", "Calls that failed", ["call", "reason"])
superseded = Counter("shoal_router_superseded_hits_total", "Hits whose document had changed")
documents = Counter("shoal_router_ingested_documents_total", "Documents answered", ["outcome"])
open_queries = Gauge("shoal_router_open_queries", "Questions under way")
query_limit = Gauge(
    "shoal_router_query_limit",
    "Questions that may be under way before others are refused; +Inf before any was answered",
    ["lane"],
)
topology_version = Gauge("shoal_router_topology_version", "Version of the topology followed")

# A series that begins with its first event is no increase to Prometheus: these begin at 0.
for _outcome in ("ok", "partial", "failed"):
    queries.labels(_outcome)
for _result in ("hit", "miss"):
    cache.labels(_result)
for _lane in ("search", "encode"):
    round_queries.labels(_lane)
for _stored in ("STORED", "UNCHANGED", "REJECTED"):
    documents.labels(f"INGEST_OUTCOME_{_stored}")
for _shard_reason in (ShardUnavailable, Overloaded, DeadlineExceeded, CorruptLog, CorruptSegment):
    missing_shards.labels(_shard_reason.reason)
for _refusal in (Overloaded, InternalError, DeadlineExceeded, InsufficientCoverage):
    refusals.labels("search", _refusal.reason)
refusals.labels("ingest", DiskFull.reason)


@contextmanager
def counted(call: str) -> Iterator[None]:
    """Counts the typed error that ends a block, if one does."""
    try:
        yield
    except ShoalError as error:
        refusals.labels(call, error.reason).inc()
        raise
