"""What a server's report of its shards says about the cluster."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from deploy.core.state import Collection, Placement, ShardPhase, ShardView
from shoal.types import ShardRef


@dataclass(frozen=True, slots=True)
class Sighting:
    """A shard in a server's report; see `ShardView`."""

    ref: ShardRef
    epoch: int
    phase: ShardPhase
    documents: int
    size: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """A server's answer.

    Attributes:
        server: its name.
        incarnation: of the process that answered.
        sightings: every shard that it holds.
        asked: shards that it held when it was asked, as far as was known: if they are not
            in the report, the server let them go.
    """

    server: str
    incarnation: int
    sightings: tuple[Sighting, ...]
    asked: frozenset[ShardRef]


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of shards.

    Attributes:
        shards: where they belong; see `Observed.shards`.
        arrivals: where they move to; see `Observed.arrivals`.
        strays: those that the server of the last report holds and should not.
    """

    shards: Mapping[ShardRef, ShardView]
    arrivals: Mapping[ShardRef, ShardView]
    strays: frozenset[ShardRef] = frozenset()


def merge_report(collections: Iterable[Collection], known: Seen, report: Report) -> Seen:
    """What is known after a report.

    A shard that is seen under its recorded server and epoch is taken as it is:
    that is how a restarted controller finds its shards without opening them again.
    """
    placed = {
        collection.ref(number): placement
        for collection in collections
        for number, placement in enumerate(collection.shards)
    }
    shards, arrivals = dict(known.shards), dict(known.arrivals)
    seen = {sighting.ref: sighting for sighting in report.sightings}
    for ref in report.asked - seen.keys():
        for views in (shards, arrivals):
            if ref in views and _same(views[ref], report):
                del views[ref]
    strays = set()
    for ref, sighting in seen.items():
        placement = placed.get(ref, Placement())
        if report.server not in {placement.server, placement.target}:
            strays.add(ref)
        elif placement.server == report.server and placement.epoch == sighting.epoch:
            shards[ref] = _seen(shards.get(ref), sighting, report)
        elif report.server == placement.target or placement.highest == sighting.epoch:
            arrivals[ref] = _seen(arrivals.get(ref), sighting, report)
    return Seen(shards, arrivals, frozenset(strays))


def _same(view: ShardView, report: Report) -> bool:
    return view.server == report.server and view.incarnation == report.incarnation


def _seen(view: ShardView | None, sighting: Sighting, report: Report) -> ShardView:
    if view is None or not _same(view, report) or view.epoch != sighting.epoch:
        if view is not None and _same(view, report) and view.epoch > sighting.epoch:
            # The report was written before the answer that told the epoch.
            return view
        return ShardView(
            report.server,
            report.incarnation,
            sighting.epoch,
            sighting.phase,
            sighting.documents,
            size=sighting.size,
        )
    if view.phase is ShardPhase.OPEN and sighting.phase is ShardPhase.OPENING:
        # The report was written before the answer to OpenShard.
        return view
    return replace(view, phase=sighting.phase, documents=sighting.documents, size=sighting.size)
