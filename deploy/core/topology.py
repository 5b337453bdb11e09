"""The map that routers follow, and when a newer version of it is due."""

from dataclasses import dataclass, replace

from deploy.core.build import GenerationPhase
from deploy.core.state import (
    Collection,
    Desired,
    Mention,
    Observed,
    Phase,
    Placement,
    Role,
    ShardPhase,
)
from shoal.types import ShardRef


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A process that can be called; `fingerprints` are an encoder's models."""

    name: str
    address: str
    fingerprints: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PlacedShard:
    """A shard's servers (empty while none serves it), last known documents, and the epoch
    under which it is served.
    """

    servers: tuple[str, ...]
    documents: int
    epoch: int


@dataclass(frozen=True, slots=True)
class PlacedCollection:
    """A collection's serving generation and where its shards are."""

    name: str
    uuid: str
    generation: int
    shards: tuple[PlacedShard, ...]


@dataclass(frozen=True, slots=True)
class Topology:
    """One version of the map; the higher version wins."""

    version: int = 0
    encoders: tuple[Endpoint, ...] = ()
    servers: tuple[Endpoint, ...] = ()
    routers: tuple[Endpoint, ...] = ()
    collections: tuple[PlacedCollection, ...] = ()

    def collection(self, name: str) -> PlacedCollection | None:
        """The collection of that name."""
        return next((c for c in self.collections if c.name == name), None)


def next_topology(
    desired: Desired, observed: Observed, published: Topology, counts_due: bool
) -> Topology | None:
    """The topology to publish now, or None if the published one still holds.

    Document counts alone make a new version only when they are due; any other
    change makes one at once, and carries the newest counts.
    """
    fresh = _build(desired, observed, published)
    if not counts_due and _without_counts(fresh) == _without_counts(published):
        return None
    return None if fresh == published else replace(fresh, version=published.version + 1)


def serves(topology: Topology, name: str) -> bool:
    """Every shard of the collection has a server."""
    collection = topology.collection(name)
    return collection is not None and all(shard.servers for shard in collection.shards)


def mentions(topology: Topology) -> set[Mention]:
    """What routers that follow the topology may ask: processes, and servers for shards."""
    return {
        *(each.name for each in (*topology.encoders, *topology.servers, *topology.routers)),
        *(
            (server, ShardRef(collection.uuid, collection.generation, number))
            for collection in topology.collections
            for number, shard in enumerate(collection.shards)
            for server in shard.servers
        ),
    }


def _build(desired: Desired, observed: Observed, published: Topology) -> Topology:
    documents = {
        ShardRef(collection.uuid, collection.generation, number): shard.documents
        for collection in published.collections
        for number, shard in enumerate(collection.shards)
    }
    collections = tuple(
        PlacedCollection(
            collection.name,
            collection.uuid,
            collection.generation,
            tuple(
                _shard(collection, number, placement, observed, documents)
                for number, placement in enumerate(collection.shards)
            ),
        )
        for collection in desired.collections
        if collection.phase is GenerationPhase.SERVING
    )
    # What is to go is named no more, but for servers that hold a shard to the last.
    wanted = {spec.name for spec in desired.processes} | {
        server for each in collections for shard in each.shards for server in shard.servers
    }
    return Topology(
        version=published.version,
        encoders=_endpoints(observed, Role.ENCODER, wanted),
        servers=_endpoints(observed, Role.SERVER, wanted),
        routers=_endpoints(observed, Role.ROUTER, wanted),
        collections=collections,
    )


def _endpoints(observed: Observed, role: Role, wanted: set[str]) -> tuple[Endpoint, ...]:
    # A server is called to open shards before its health says SERVING; encoders
    # and routers are worth calling only when theirs does. Routers are for clients alone.
    return tuple(
        Endpoint(
            process.name,
            process.advertised if role is Role.ROUTER else process.address,
            tuple(sorted(process.fingerprints)),
        )
        for process in sorted(observed.processes.values(), key=lambda process: process.name)
        if process.role is role
        and process.name in wanted
        and process.phase is Phase.RUNNING
        and (process.serving or role is Role.SERVER)
        and (process.advertised or role is not Role.ROUTER)
    )


def _shard(
    collection: Collection,
    number: int,
    placement: Placement,
    observed: Observed,
    documents: dict[ShardRef, int],
) -> PlacedShard:
    ref = collection.ref(number)
    view = observed.holder(ref, placement)
    if view is not None and view.phase is ShardPhase.OPEN:
        return PlacedShard((view.server,), view.documents, placement.epoch)
    return PlacedShard((), documents.get(ref, 0), placement.epoch)


def _without_counts(topology: Topology) -> Topology:
    return replace(
        topology,
        collections=tuple(
            replace(
                collection,
                shards=tuple(replace(shard, documents=0) for shard in collection.shards),
            )
            for collection in topology.collections
        ),
    )
