"""Catalog records and topologies: messages to the controller's values and back."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from deploy.core.build import GenerationPhase, record_name
from deploy.core.creation import Model, Settled, Wish
from deploy.core.state import Collection, Placement, ShardPhase, ShardView
from deploy.core.topology import Endpoint, PlacedCollection, PlacedShard, Topology
from shoal.errors import InvalidRequest
from shoal.rpc.common.v1 import common_pb2
from shoal.rpc.controller.v1 import controller_pb2
from shoal.rpc.encoder.v1 import encoder_pb2
from shoal.rpc.router.v1 import router_pb2
from shoal.rpc.shard.v1 import shard_pb2
from shoal.types import Kind, ShardRef, Similarity

KINDS = {
    common_pb2.COLLECTION_KIND_SINGLE: Kind.SINGLE,
    common_pb2.COLLECTION_KIND_COLBERT: Kind.COLBERT,
}
SIMILARITIES = {
    common_pb2.SIMILARITY_COSINE: Similarity.COSINE,
    common_pb2.SIMILARITY_DOT: Similarity.DOT,
    common_pb2.SIMILARITY_L2: Similarity.L2,
}
PHASES = {
    controller_pb2.GENERATION_PHASE_UNSPECIFIED: GenerationPhase.SERVING,
    controller_pb2.GENERATION_PHASE_TRAINING: GenerationPhase.TRAINING,
    controller_pb2.GENERATION_PHASE_COPYING: GenerationPhase.COPYING,
    controller_pb2.GENERATION_PHASE_PREVIOUS: GenerationPhase.PREVIOUS,
}
_SHARD_PHASES = {
    shard_pb2.SHARD_STATE_OPENING: ShardPhase.OPENING,
    shard_pb2.SHARD_STATE_PREPARED: ShardPhase.PREPARED,
    shard_pb2.SHARD_STATE_SERVING: ShardPhase.OPEN,
    shard_pb2.SHARD_STATE_CORRUPT: ShardPhase.CORRUPT,
}
_TAIL_PASSAGE_BYTES = 2_048
"""A guess of a passage's bytes, with its vector, where no segment tells."""
_PHASE_NUMBERS = {phase: number for number, phase in PHASES.items()}
_KIND_NUMBERS = {kind: number for number, kind in KINDS.items()}
_SIMILARITY_NUMBERS = {similarity: number for number, similarity in SIMILARITIES.items()}


@dataclass(frozen=True, slots=True)
class Record:
    """A collection as the catalog holds it.

    Attributes:
        settings: what shards and routers must know.
        collection: generation and placements.
    """

    settings: common_pb2.CollectionSettings
    collection: Collection

    def placed(self, shard: int, placement: Placement) -> "Record":
        """The record with one shard placed anew."""
        shards = list(self.collection.shards)
        shards[shard] = placement
        return replace(self, collection=replace(self.collection, shards=tuple(shards)))

    def to_message(self) -> controller_pb2.CollectionPlacement:
        """As it is stored."""
        return controller_pb2.CollectionPlacement(
            settings=self.settings,
            generation=self.collection.generation,
            shards=[
                controller_pb2.ShardPlacement(
                    servers=[placement.server] if placement.server else [],
                    writer_epoch=placement.epoch,
                    moving_to=placement.target,
                    highest_epoch=placement.highest,
                )
                for placement in self.collection.shards
            ],
            phase=_PHASE_NUMBERS[self.collection.phase],
            highest_generation=self.collection.highest,
            previous_generation=self.collection.previous,
            handed_over=_handed_over(self.collection),
        )

    def as_phase(self, phase: GenerationPhase) -> "Record":
        """The same generation, there for something else."""
        name = record_name(self.settings.name, self.collection.generation, phase)
        return replace(self, collection=replace(self.collection, name=name, phase=phase))

    def numbered(self, generation: int) -> "Record":
        """The record where a generation of the collection has had this number."""
        highest = max(self.collection.highest, generation)
        return replace(self, collection=replace(self.collection, highest=highest))

    def with_settings(self, settings: common_pb2.CollectionSettings) -> "Record":
        """The record with settings that became known while it was built."""
        return replace(self, settings=settings)


def record_from_bytes(data: bytes) -> Record:
    """A stored record."""
    message = controller_pb2.CollectionPlacement.FromString(data)
    shards = tuple(
        Placement(
            shard.servers[0] if shard.servers else "",
            shard.writer_epoch,
            shard.moving_to,
            shard.highest_epoch,
        )
        for shard in message.shards
    )
    record = _record(message.settings, message.generation, shards)
    highest = max(message.highest_generation, message.generation)
    collection = replace(
        record.collection,
        highest=highest,
        previous=message.previous_generation,
        handed_over=tuple((h.generation, tuple(h.sequences)) for h in message.handed_over),
    )
    return replace(record, collection=collection).as_phase(PHASES[message.phase])


def _handed_over(collection: Collection) -> list[controller_pb2.HandedOver]:
    return [
        controller_pb2.HandedOver(generation=generation, sequences=sequences)
        for generation, sequences in collection.handed_over
    ]


def next_record(
    current: Record, settings: common_pb2.CollectionSettings, shards: int, *, trains: bool
) -> Record:
    """The record of the generation that is to follow.

    Args:
        current: the one that serves.
        settings: of the next.
        shards: of the next.
        trains: its codec is to be trained first.
    """
    generation = current.collection.highest + 1
    record = _record(settings, generation, (Placement(),) * shards)
    collection = replace(record.collection, highest=generation)
    phase = GenerationPhase.TRAINING if trains else GenerationPhase.COPYING
    return replace(record, collection=collection).as_phase(phase)


def new_record(settled: Settled, uuid: bytes) -> Record:
    """The record of a collection to create: generation 1, nothing placed."""
    settings = common_pb2.CollectionSettings(
        name=settled.name,
        uuid=uuid,
        kind=_KIND_NUMBERS[settled.kind],
        similarity=_SIMILARITY_NUMBERS[settled.similarity],
        dim=settled.dim,
        encoder=settled.encoder,
        fingerprint=settled.fingerprint,
        index=settled.index,
        chunk_tokens=settled.chunk_tokens,
        chunk_overlap=settled.chunk_overlap,
        card_json=settled.card_json,
    )
    if settled.kind is Kind.COLBERT:
        settings.late.code_bytes = settled.code_bytes
        settings.late.train_at = settled.train_at
        settings.late.pool_factor = settled.pool_factor
    return _record(settings, 1, (Placement(),) * settled.shards)


def _record(
    settings: common_pb2.CollectionSettings, generation: int, shards: tuple[Placement, ...]
) -> Record:
    collection = Collection(
        settings.name,
        settings.uuid.hex(),
        generation,
        shards,
        settings.encoder,
        settings.fingerprint,
    )
    return Record(settings, collection)


def wish_from_message(request: router_pb2.CreateCollectionRequest) -> Wish:
    """What a user asks for.

    Raises:
        InvalidRequest: a kind or similarity that this version does not know.
    """
    if request.kind and request.kind not in KINDS:
        raise InvalidRequest(f"there is no collection kind {request.kind}", field="kind")
    if request.similarity and request.similarity not in SIMILARITIES:
        raise InvalidRequest(f"there is no similarity {request.similarity}", field="similarity")
    return Wish(
        name=request.name,
        kind=KINDS.get(request.kind, Kind.SINGLE),
        encoder=request.encoder,
        dim=request.dim,
        index=request.index,
        chunk_tokens=request.chunk_tokens if request.HasField("chunk_tokens") else None,
        similarity=SIMILARITIES.get(request.similarity),
        shards=request.shards,
        code_bytes=request.code_bytes,
        train_at=request.train_at,
        pool_factor=request.pool_factor,
    )


def rebuild_wish(record: Record, request: router_pb2.RebuildCollectionRequest) -> Wish:
    """What the next generation is to be: as this one, but for what is asked for."""
    settings = record.settings
    kind = KINDS[settings.kind]
    chunks = settings.chunk_tokens
    return Wish(
        name=settings.name,
        kind=kind,
        encoder=request.encoder or settings.encoder,
        dim=0 if request.encoder else settings.dim,
        index=request.index or settings.index,
        # Another encoder has a length of its own, unless the user chose one.
        chunk_tokens=chunks if chunks and not request.encoder else None,
        similarity=None if request.encoder else SIMILARITIES[settings.similarity],
        shards=request.shards or len(record.collection.shards),
        code_bytes=request.code_bytes or settings.late.code_bytes,
        train_at=settings.late.train_at,
        pool_factor=settings.late.pool_factor,
    )


def model_from_message(info: encoder_pb2.ModelInfo) -> Model:
    """A model that an encoder loaded."""
    return Model(
        fingerprint=info.fingerprint,
        card_json=info.card_json,
        dim=info.dim,
        similarity=SIMILARITIES.get(info.similarity, Similarity.COSINE),
        max_document_tokens=info.max_document_tokens,
        token_vectors=info.token_vectors,
    )


def key_to_message(ref: ShardRef) -> shard_pb2.ShardKey:
    """A shard's identity on the wire."""
    return shard_pb2.ShardKey(
        collection=bytes.fromhex(ref.collection), generation=ref.generation, shard=ref.shard
    )


def key_from_message(key: shard_pb2.ShardKey) -> ShardRef:
    """A shard's identity."""
    return ShardRef(key.collection.hex(), key.generation, key.shard)


def shard_phase(state: shard_pb2.ShardState.ValueType) -> ShardPhase:
    """Where in its life a server says that a shard is."""
    return _SHARD_PHASES.get(state, ShardPhase.OPENING)


def shard_view(status: shard_pb2.ShardStatus, server: str, incarnation: int) -> ShardView:
    """A shard as the server that was asked for it says."""
    return ShardView(
        server,
        incarnation,
        status.writer_epoch,
        shard_phase(status.state),
        status.documents,
        size=shard_size(status),
    )


def shard_size(status: shard_pb2.ShardStatus) -> int:
    """Bytes of a shard's segments, and about those of its tail."""
    sealed = sum(segment.bytes for segment in status.segments)
    rows = sum(segment.passages for segment in status.segments)
    return sealed + status.tail_passages * (sealed // rows if rows else _TAIL_PASSAGE_BYTES)


def topology_to_message(
    topology: Topology, records: Mapping[str, Record]
) -> controller_pb2.Topology:
    """A topology as routers get it.

    Args:
        topology: the map.
        records: of its collections, by name.
    """
    return controller_pb2.Topology(
        version=topology.version,
        encoders=map(_endpoint_to_message, topology.encoders),
        servers=map(_endpoint_to_message, topology.servers),
        routers=map(_endpoint_to_message, topology.routers),
        collections=[
            controller_pb2.CollectionPlacement(
                settings=records[collection.name].settings,
                generation=collection.generation,
                handed_over=_handed_over(records[collection.name].collection),
                shards=[
                    controller_pb2.ShardPlacement(
                        servers=shard.servers, documents=shard.documents, writer_epoch=shard.epoch
                    )
                    for shard in collection.shards
                ],
            )
            for collection in topology.collections
        ],
    )


def topology_from_message(message: controller_pb2.Topology) -> Topology:
    """The map that was published last."""
    return Topology(
        version=message.version,
        encoders=tuple(map(_endpoint_from_message, message.encoders)),
        servers=tuple(map(_endpoint_from_message, message.servers)),
        routers=tuple(map(_endpoint_from_message, message.routers)),
        collections=tuple(
            PlacedCollection(
                collection.settings.name,
                collection.settings.uuid.hex(),
                collection.generation,
                tuple(
                    PlacedShard(tuple(shard.servers), shard.documents, shard.writer_epoch)
                    for shard in collection.shards
                ),
            )
            for collection in message.collections
        ),
    )


def _endpoint_to_message(endpoint: Endpoint) -> controller_pb2.Endpoint:
    return controller_pb2.Endpoint(
        name=endpoint.name, address=endpoint.address, fingerprints=endpoint.fingerprints
    )


def _endpoint_from_message(message: controller_pb2.Endpoint) -> Endpoint:
    return Endpoint(message.name, message.address, tuple(message.fingerprints))
