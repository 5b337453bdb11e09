"""What two scrapes of a cluster say of the time between them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoal.client.model import ClusterStatus

Labels = frozenset[tuple[str, str]]
Page = Mapping[tuple[str, Labels], float]
"""A process's Prometheus page: the value of each sample by its name and labels."""

LANES = ("query", "document")


@dataclass(frozen=True, slots=True)
class Scrape:
    """A cluster at one moment.

    Attributes:
        at_s: when, by a clock that never goes back.
        status: as a router tells it.
        pages: by process name, of those whose page was read.
    """

    at_s: float
    status: ClusterStatus
    pages: Mapping[str, Page]


@dataclass(frozen=True, slots=True)
class Latency:
    """Of what was observed between two scrapes; None where nothing was.

    Attributes:
        per_s: observations a second.
        p50_ms: half took no longer.
        p99_ms: 99 of 100 took no longer. Both are interpolated within a bucket.
    """

    per_s: float
    p50_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True, slots=True)
class ProcessReading:
    """A process; `measured` says whether its metrics are in the reading."""

    name: str
    state: str
    address: str
    pid: int
    restarts: int
    measured: bool


@dataclass(frozen=True, slots=True)
class EncoderReading:
    """All encoders together, one lane.

    Attributes:
        lane: "query" or "document".
        queue_texts: texts that wait now.
        batch_texts: texts of one run of the model, mean; None without a run.
        tokens_per_s: encoded, padding left out.
        queue: a text's wait.
        model: one run.
        refused_per_s: requests refused as overload.
    """

    lane: str
    queue_texts: float
    batch_texts: float | None
    tokens_per_s: float
    queue: Latency
    model: Latency
    refused_per_s: float


@dataclass(frozen=True, slots=True)
class ShardReading:
    """A shard of a serving generation, as the status tells it."""

    collection: str
    shard: int
    server: str
    state: str
    documents: int
    passages: int
    tail_passages: int
    position: int


@dataclass(frozen=True, slots=True)
class Reading:
    """What happened between two scrapes, and how things stand at the second.

    Attributes:
        seconds: between them.
        processes: ascending by name.
        queries_per_s: answered, by outcome ("ok", "partial", "failed").
        stages: of a question at the routers, by name; "total" is the whole.
        open_queries: questions under way now.
        cache_hit_share: of look-ups of encoded questions; None without a look-up.
        refused_per_s: calls that failed, by reason.
        encoders: by lane.
        shard_queue: a search message's wait for a thread.
        shard_search: searching, per message.
        ingested_per_s: documents answered, by outcome ("stored", "unchanged", "rejected").
        written_per_s: document versions made durable.
        shards: ascending by collection and number.
    """

    seconds: float
    processes: tuple[ProcessReading, ...]
    queries_per_s: Mapping[str, float]
    stages: Mapping[str, Latency]
    open_queries: float
    cache_hit_share: float | None
    refused_per_s: Mapping[str, float]
    encoders: tuple[EncoderReading, ...]
    shard_queue: Latency
    shard_search: Latency
    ingested_per_s: Mapping[str, float]
    written_per_s: float
    shards: tuple[ShardReading, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """Two scrapes.

    Attributes:
        before: the earlier one.
        after: the later one.
    """

    before: Scrape
    after: Scrape

    @property
    def seconds(self) -> float:
        """Between the two; never 0."""
        return max(self.after.at_s - self.before.at_s, 1e-9)

    def increases(self, name: str, **labels: str) -> list[tuple[Labels, float]]:
        """By how much each counter grew, over all processes.

        One that is lower than before began again from 0 with its process. A process
        that was not scraped before adds nothing: when its counts came is not known.
        """
        wanted = frozenset(labels.items())
        return [
            (own, value - earlier if value >= (earlier := before.get((found, own), 0.0)) else value)
            for process, page in self.after.pages.items()
            if (before := self.before.pages.get(process)) is not None
            for (found, own), value in page.items()
            if found == name and wanted <= own
        ]

    def per_s(self, name: str, **labels: str) -> float:
        """A counter's growth in a second, over all processes."""
        return sum(by for _, by in self.increases(name, **labels)) / self.seconds

    def per_s_by(self, label: str, name: str) -> dict[str, float]:
        """A counter's growth in a second by the values of a label, ascending; 0 left out."""
        rates: dict[str, float] = {}
        for labels, by in self.increases(name):
            value = dict(labels).get(label, "")
            rates[value] = rates.get(value, 0.0) + by / self.seconds
        return {value: rates[value] for value in sorted(rates) if rates[value]}

    def latency(self, name: str, **labels: str) -> Latency:
        """What a histogram of seconds observed."""
        buckets: dict[float, float] = {}
        for own, by in self.increases(f"{name}_bucket", **labels):
            bound = float(dict(own)["le"])
            buckets[bound] = buckets.get(bound, 0.0) + by
        ordered = sorted(buckets.items())
        count = ordered[-1][1] if ordered else 0.0
        half, most = (quantile(ordered, share) for share in (0.5, 0.99))
        return Latency(
            count / self.seconds,
            None if half is None else half * 1e3,
            None if most is None else most * 1e3,
        )

    def mean(self, name: str, **labels: str) -> float | None:
        """Mean of what a histogram observed; None where that was nothing."""
        count = sum(by for _, by in self.increases(f"{name}_count", **labels))
        total = sum(by for _, by in self.increases(f"{name}_sum", **labels))
        return total / count if count else None


def quantile(buckets: Sequence[tuple[float, float]], share: float) -> float | None:
    """The value below which a share of the observations lies, as PromQL interpolates it.

    Args:
        buckets: (upper bound, observations up to it), ascending; the last bound is infinite.
        share: 0.0 to 1.0.

    Returns:
        None without observations; the last finite bound for what lies above it.
    """
    if not buckets or not buckets[-1][1]:
        return None
    rank = share * buckets[-1][1]
    lower, below = 0.0, 0.0
    for upper, up_to in buckets:
        if up_to >= rank and up_to > below:
            if math.isinf(upper):
                return lower
            return lower + (upper - lower) * (rank - below) / (up_to - below)
        lower, below = upper if math.isfinite(upper) else lower, up_to
    return lower


def read(before: Scrape, after: Scrape) -> Reading:
    """What two scrapes say."""
    change = Change(before, after)
    stages = sorted({stage for page in after.pages.values() for stage in _stages(page)})
    hits = change.per_s("shoal_router_query_cache_total", result="hit")
    looked = change.per_s("shoal_router_query_cache_total")
    return Reading(
        seconds=change.seconds,
        processes=tuple(
            ProcessReading(
                each.name, each.state, each.address, each.pid, each.restarts,
                each.name in after.pages,
            )
            for each in after.status.processes
        ),
        queries_per_s=change.per_s_by("outcome", "shoal_router_queries_total"),
        stages={
            stage: change.latency("shoal_router_stage_seconds", stage=stage) for stage in stages
        },
        open_queries=_now(after, "shoal_router_open_queries"),
        cache_hit_share=hits / looked if looked else None,
        refused_per_s=change.per_s_by("reason", "shoal_router_refusals_total"),
        encoders=tuple(_encoder(change, lane) for lane in LANES),
        shard_queue=change.latency("shoal_shard_queue_seconds"),
        shard_search=change.latency("shoal_shard_search_seconds"),
        ingested_per_s={
            outcome.removeprefix("INGEST_OUTCOME_").lower(): rate
            for outcome, rate in change.per_s_by(
                "outcome", "shoal_router_ingested_documents_total"
            ).items()
        },
        written_per_s=change.per_s("shoal_shard_documents_written_total"),
        shards=tuple(_shards(after.status)),
    )  # fmt: skip


def _stages(page: Page) -> Iterable[str]:
    return (
        value
        for name, labels in page
        if name == "shoal_router_stage_seconds_count"
        for _, value in labels
    )


def _encoder(change: Change, lane: str) -> EncoderReading:
    return EncoderReading(
        lane=lane,
        queue_texts=_now(change.after, "shoal_encoder_queue_texts", lane=lane),
        batch_texts=change.mean("shoal_encoder_batch_texts", lane=lane),
        tokens_per_s=change.per_s("shoal_encoder_tokens_total", lane=lane),
        queue=change.latency("shoal_encoder_queue_seconds", lane=lane),
        model=change.latency("shoal_encoder_model_seconds", lane=lane),
        refused_per_s=change.per_s("shoal_encoder_refused_requests_total", lane=lane),
    )


def _now(scrape: Scrape, name: str, **labels: str) -> float:
    """A gauge's sum over all processes."""
    wanted = frozenset(labels.items())
    return sum(
        value
        for page in scrape.pages.values()
        for (found, own), value in page.items()
        if found == name and wanted <= own
    )


def _shards(status: ClusterStatus) -> Iterable[ShardReading]:
    for collection in status.collections:
        for each in collection.shards:
            yield ShardReading(
                collection.name, each.shard, each.server, each.state, each.documents,
                each.passages, each.tail_passages, each.position,
            )  # fmt: skip
