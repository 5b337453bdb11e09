"""Prometheus metrics of an encoder process."""

from prometheus_client import Counter, Gauge, Histogram

from encoder_service.core.batching import DropReason, Lane

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

QUEUE_TEXTS = Gauge("shoal_encoder_queue_texts", "Texts that wait for the model.", ["lane"])
BATCH_TEXTS = Histogram(
    "shoal_encoder_batch_texts",
    "Texts in one run of the model.",
    ["lane"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)
TOKENS = Counter("shoal_encoder_tokens", "Tokens encoded, padding left out.", ["lane"])
PADDING = Counter("shoal_encoder_padding_tokens", "Padding that the model ran over.", ["lane"])
TOKENIZE_SECONDS = Histogram(
    "shoal_encoder_tokenize_seconds", "Tokenising one request.", ["lane"], buckets=_SECONDS
)
QUEUE_SECONDS = Histogram(
    "shoal_encoder_queue_seconds", "A text's wait for the model.", ["lane"], buckets=_SECONDS
)
MODEL_SECONDS = Histogram(
    "shoal_encoder_model_seconds", "One run of the model.", ["lane"], buckets=_SECONDS
)
DROPPED = Counter(
    "shoal_encoder_dropped_texts",
    "Texts not encoded because the caller left or the deadline passed.",
    ["lane", "reason"],
)
REFUSED = Counter("shoal_encoder_refused_requests", "Requests refused as overload.", ["lane"])

# A series that begins with its first event is no increase to Prometheus: all begin at 0.
for _lane in Lane:
    for _metric in (
        *(QUEUE_TEXTS, BATCH_TEXTS, TOKENS, PADDING, REFUSED),
        *(TOKENIZE_SECONDS, QUEUE_SECONDS, MODEL_SECONDS),
    ):
        _metric.labels(_lane.value)
    for _reason in DropReason:
        DROPPED.labels(_lane.value, _reason.value)
