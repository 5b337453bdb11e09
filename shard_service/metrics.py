"""Prometheus metrics of a shard server."""

from prometheus_client import Counter, Histogram

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)

QUERIES = Counter("shoal_shard_queries_total", "Queries that were answered.")
BATCHES = Counter("shoal_shard_search_messages_total", "Search messages that were answered.")
OVERLOADED = Counter("shoal_shard_overloaded_total", "Search messages that were refused.")
WRITTEN = Counter("shoal_shard_documents_written_total", "Document versions made durable.")
NEW_TOKENS = Counter("shoal_shard_new_tokens_total", "Token vectors that users wrote.")
FAR_TOKENS = Counter(
    "shoal_shard_far_tokens_total",
    "Of them, those farther from their centroid than three in four of the codec's sample.",
)
DELETED = Counter("shoal_shard_documents_deleted_total", "Documents deleted.")
SEALED = Counter("shoal_shard_segments_built_total", "Segments that were published.")
SEAL_SECONDS = Histogram(
    "shoal_shard_seal_seconds",
    "Time from freezing to serving a segment.",
    buckets=(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
)
QUEUE_SECONDS = Histogram(
    "shoal_shard_queue_seconds", "Search messages waiting for a thread.", buckets=_SECONDS
)
SEARCH_SECONDS = Histogram(
    "shoal_shard_search_seconds", "Searching, per message.", buckets=_SECONDS
)


def record_search(queries: int, queue_s: float, search_s: float) -> None:
    """Counts one answered Search message."""
    QUERIES.inc(queries)
    BATCHES.inc()
    QUEUE_SECONDS.observe(queue_s)
    SEARCH_SECONDS.observe(search_s)
