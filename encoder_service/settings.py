"""Settings of an encoder process, read from `SHOAL_ENCODER_*`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSettings:
    """How one encoder process runs.

    Attributes:
        host: address to listen on.
        port: 0 takes a free one.
        models: references that are loaded at start, separated by commas.
        device: "auto" (the first GPU, else the CPU), "cpu", "cuda" or "cuda:N".
        precision: "auto" (fp32 on a CPU, fp16 on a GPU), "fp32", "bf16" or "fp16".
        threads: torch threads for one operation.
        tokenize_threads: threads that tokenise and chunk documents; queries have one more.
        query_batch_tokens: padded tokens in a batch of queries; 0 chooses by device.
        document_batch_tokens: the same for passages. On a CPU it bounds how long a
            query waits for the batch under way.
        query_queue_tokens: tokens of waiting queries beyond which new ones are refused.
        document_queue_tokens: the same for passages.
        max_models: models that the process holds at most.
        hub_cache: folder of the hub's cache; empty is the library's own choice.
        hub_downloads: whether a pinned hub model that is not cached may be fetched.
        metrics_port: Prometheus metrics; 0 takes a free port, -1 serves none.
    """

    host: str = "127.0.0.1"
    port: int = 0
    models: str = "all-minilm-l6-v2"
    device: str = "auto"
    precision: str = "auto"
    threads: int = 1
    tokenize_threads: int = 1
    query_batch_tokens: int = 0
    document_batch_tokens: int = 0
    query_queue_tokens: int = 65_536
    document_queue_tokens: int = 262_144
    max_models: int = 8
    hub_cache: str = ""
    hub_downloads: bool = True
    metrics_port: int = -1
