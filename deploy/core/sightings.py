"""What a server's report of its shards says about the cluster."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from deploy.core.state import Collection, Placement, ShardPhase, ShardView
from shoal.types import ShardRef


@dataclass(frozen=True, slots=True)
class Sighting:
    """A shard in a server's report."""

    ref: ShardRef
    epoch: int
    phase: ShardPhase
    documents: int


@dataclass(frozen=True, slots=True)
class Report:
    """A server's answer.

    Attributes:
        server: its name.
        incarnation: of the process that answered.
        sightings: every shard that it holds.
        asked: shards that were open there when it was asked: if they are not
            in the report, the server let them go.
    """

    server: str
    incarnation: int
    sightings: tuple[Sighting, ...]
    asked: frozenset[ShardRef]


def merge_report(
    collections: Iterable[Collection], views: Mapping[ShardRef, ShardView], report: Report
) -> tuple[dict[ShardRef, ShardView], frozenset[ShardRef]]:
    """The views after a report, and the shards that the server holds but should not.

    A shard that is seen under its recorded server and epoch is taken as it is:
    that is how a restarted controller finds its shards without opening them again.
    """
    placed = {
        collection.ref(number): placement
        for collection in collections
        for number, placement in enumerate(collection.shards)
    }
    merged = dict(views)
    seen = {sighting.ref: sighting for sighting in report.sightings}
    for ref in report.asked - seen.keys():
        if ref in merged and _same(merged[ref], report):
            del merged[ref]
    strays = set()
    for ref, sighting in seen.items():
        placement = placed.get(ref, Placement())
        if placement.server != report.server:
            strays.add(ref)
        elif placement.epoch == sighting.epoch:
            merged[ref] = _seen(merged.get(ref), sighting, report)
    return merged, frozenset(strays)


def _same(view: ShardView, report: Report) -> bool:
    return view.server == report.server and view.incarnation == report.incarnation


def _seen(view: ShardView | None, sighting: Sighting, report: Report) -> ShardView:
    if view is None or not _same(view, report) or view.epoch != sighting.epoch:
        return ShardView(
            report.server,
            report.incarnation,
            sighting.epoch,
            sighting.phase,
            sighting.documents,
        )
    if view.phase is ShardPhase.OPEN and sighting.phase is ShardPhase.OPENING:
        # The report was written before the answer to OpenShard.
        return view
    return replace(view, phase=sighting.phase, documents=sighting.documents)
