"""What users ask of the controller: create and drop collections, accept a loss, status."""

import asyncio
import logging
import os
import secrets
from collections.abc import Sequence

from deploy.core.build import GenerationPhase
from deploy.core.creation import (
    NO_ENCODER,
    Bounds,
    Model,
    check_code_bytes,
    check_wish,
    settle,
)
from deploy.core.planner import OpenShard
from deploy.core.state import Phase, Role, ShardPhase
from deploy.generations import Generations
from deploy.reconciler import Reconciler
from deploy.records import (
    Record,
    model_from_message,
    new_record,
    rebuild_wish,
    wish_from_message,
)
from shoal.errors import (
    BuildUnderWay,
    ClusterUnreachable,
    CollectionExists,
    CollectionNotFound,
    DeadlineExceeded,
    EncoderUnavailable,
    InvalidRequest,
    LossMismatch,
    NoPreviousGeneration,
    ShardUnavailable,
)
from shoal.rpc.common.v1 import common_pb2
from shoal.rpc.controller.v1 import controller_pb2
from shoal.rpc.router.v1 import router_pb2
from shoal.settings import Limits
from shoal.types import ShardRef

logger = logging.getLogger(__name__)

_DROP_PATIENCE_S = 10.0
_SHARD_STATES = {
    ShardPhase.OPENING: "opening",
    ShardPhase.OPEN: "serving",
    ShardPhase.CORRUPT: "corrupt",
    ShardPhase.FAILED: "unreachable",
}


class Administration:
    """The controller's answers.

    Args:
        reconciler: the running loop.
        generations: the builds.
        limits: the cluster's limits.
    """

    def __init__(self, reconciler: Reconciler, generations: Generations, limits: Limits) -> None:
        self._loop, self._generations = reconciler, generations
        self._bounds = Bounds(
            max_dim=limits.max_dim,
            max_shards=limits.max_shards,
            default_shards=reconciler.settings.shards or reconciler.settings.servers,
        )

    async def create(self, request: router_pb2.CreateCollectionRequest, timeout_s: float) -> Record:
        """Creates a collection and waits until every shard serves.

        Raises:
            ShoalError: as `check_wish`, `settle` and the encoders say.
            CollectionExists: the name is taken.
            ShardUnavailable: a shard does not open, or not in time; the
                collection stays and its shards are tried again.
        """
        wish = check_wish(wish_from_message(request), self._bounds)
        if wish.name in self._loop.store.collections:
            raise CollectionExists(f"there is a collection {wish.name} already")
        model = None if wish.encoder == NO_ENCODER else await self._model(wish.encoder)
        record = new_record(settle(wish, model), secrets.token_bytes(16))
        await self._loop.store.create(record)
        self._loop.wake()
        await self._loop.until(
            lambda: self._serves(record) or bool(self._failed(record)), timeout_s
        )
        if not self._serves(record):
            self._refuse(record)
        return self._loop.store.collections.get(wish.name, record)

    async def _model(self, reference: str) -> Model:
        """Has every encoder that serves load a model, and says what it is."""
        encoders = [
            process
            for process in self._loop.fleet.views().values()
            if process.role is Role.ENCODER and process.serving
        ]
        timeout_s = self._loop.settings.load_timeout_s
        answers = await asyncio.gather(
            *(self._loop.calls.load_model(e.address, reference, "", timeout_s) for e in encoders),
            return_exceptions=True,
        )
        models: dict[str, Model] = {}
        for encoder, answer in zip(encoders, answers, strict=True):
            if isinstance(answer, ClusterUnreachable | DeadlineExceeded):
                logger.warning("event=encoder_silent process=%s", encoder.name)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                models[answer.fingerprint] = model_from_message(answer)
        if not models:
            raise EncoderUnavailable("no encoder answers; see `shoal status`")
        if len(models) > 1:
            raise InvalidRequest(
                f"the encoders hold different models as {reference!r}", field="encoder"
            )
        return next(iter(models.values()))

    def _serves(self, record: Record) -> bool:
        published = self._loop.published.collection(record.collection.name)
        return (
            published is not None
            and published.uuid == record.collection.uuid
            and published.generation == record.collection.generation
            and all(shard.servers for shard in published.shards)
        )

    def _failed(self, record: Record) -> list[ShardRef]:
        views = self._loop.shards
        return [
            ref
            for ref in record.collection.refs()
            if ref in views and views[ref].phase is ShardPhase.FAILED
        ]

    def _refuse(self, record: Record) -> None:
        failed = self._failed(record)
        why = "; ".join(f"shard {r.shard}: {self._loop.details.get(r, '')}" for r in failed)
        raise ShardUnavailable(
            f"collection {record.collection.name} is recorded but does not serve yet "
            f"({why or 'its servers are starting'}); see `shoal status`",
            shard=failed[0].shard if failed else 0,
        )

    async def drop(self, name: str) -> None:
        """Takes a collection out of the topology, then deletes its data.

        Raises:
            CollectionNotFound: there is none of that name.
        """
        identity = self._record(name).collection.identity
        await self._loop.store.drop(name)
        self._loop.wake()
        # Data whose servers are all down is deleted when one is back.
        await self._loop.until(
            lambda: (
                self._loop.published.collection(name) is None
                and identity not in self._loop.store.drops
            ),
            _DROP_PATIENCE_S,
        )

    async def rebuild(self, request: router_pb2.RebuildCollectionRequest) -> Record:
        """Begins to build a collection's next generation; gives its record.

        Raises:
            CollectionNotFound: there is none of that name.
            BuildUnderWay: one is being built already.
            ShoalError: the next generation cannot be so.
        """
        record = self._record(request.name)
        if self._generations.building(request.name) is not None:
            raise BuildUnderWay(f"the next generation of {request.name} is being built already")
        wish = check_wish(rebuild_wish(record, request), self._bounds)
        if not request.encoder:
            settings = common_pb2.CollectionSettings()
            settings.CopyFrom(record.settings)
            check_code_bytes(wish.code_bytes, settings.dim)
            settings.index, settings.late.code_bytes = wish.index, wish.code_bytes
        else:
            model = await self._model(wish.encoder)
            settings = new_record(settle(wish, model), record.settings.uuid).settings
        # Codes are copied as they are where nothing but their place changes.
        moves = bool(request.shards) and not (request.encoder or request.code_bytes)
        return await self._generations.begin(record, settings, wish.shards, keeps_codec=moves)

    async def rollback(self, name: str) -> Record:
        """Serves the generation before again; gives its record.

        Raises:
            CollectionNotFound: there is none of that name.
            BuildUnderWay: the next one is being built.
            NoPreviousGeneration: there is none to go back to.
            StaleTopology: its shards are not open.
        """
        record = self._record(name)
        if self._generations.building(name) is not None:
            raise BuildUnderWay(f"the next generation of {name} is being built")
        previous = self._generations.previous(name)
        if previous is None:
            raise NoPreviousGeneration(f"{name} has no generation to go back to")
        serving = await self._generations.rollback(record, previous)
        await self._loop.until(lambda: self._serves(serving), _DROP_PATIENCE_S)
        return serving

    async def accept_loss(self, name: str, shard: int, loss: str) -> None:
        """Opens a corrupt shard without what it lost.

        Raises:
            CollectionNotFound, InvalidRequest: there is no such shard.
            LossMismatch: the shard names another loss, or none.
            ShardUnavailable: it does not open.
        """
        record = self._record(name)
        if shard >= len(record.collection.shards):
            raise InvalidRequest(f"{name} has no shard {shard}", field="shard")
        ref = record.collection.ref(shard)
        status = self._loop.statuses.get(ref)
        known = status.loss if status is not None else ""
        if not known or known != loss:
            raise LossMismatch(f"shard {shard} of {name} names the loss {known!r}")
        placement = record.collection.shards[shard]
        action = OpenShard(name, ref, placement.server, placement.next_epoch)
        await self._loop.open(action, self._loop.opening(action), accept_loss=loss)
        self._loop.wake()
        if self._loop.shards[ref].phase is not ShardPhase.OPEN:
            raise ShardUnavailable(
                self._loop.details.get(ref, "the shard does not open"), shard=shard
            )
        await self._loop.until(lambda: self._serves(record), _DROP_PATIENCE_S)

    def _record(self, name: str) -> Record:
        record = self._loop.store.collections.get(name)
        if record is None:
            raise CollectionNotFound(f"there is no collection {name[:80]!r}")
        return record

    def status(
        self, address: str, pending: Sequence[str]
    ) -> controller_pb2.GetClusterStatusResponse:
        """Processes and shards as last seen.

        Args:
            address: the controller's own.
            pending: what is left to do.
        """
        own = router_pb2.ProcessInfo(
            name="controller",
            role="controller",
            address=address,
            state="serving",
            pid=os.getpid(),
            restarts=max(0, self._loop.store.starts - 1),
        )
        roles = {spec.name: spec.role for spec in self._loop.wanted.specs}
        draining = {
            name: tracked.view.role
            for name, tracked in self._loop.fleet.tracked.items()
            if name not in roles
        }
        processes = [
            own,
            *(self._process(name, role) for name, role in roles.items()),
            *(self._process(name, role, draining=True) for name, role in draining.items()),
        ]
        return controller_pb2.GetClusterStatusResponse(
            processes=sorted(processes, key=lambda process: process.name),
            collections=[
                self._collection(record)
                for _, record in sorted(self._loop.store.collections.items())
                if record.collection.phase is GenerationPhase.SERVING
            ],
            topology_version=self._loop.published.version,
            desired={role.value: count for role, count in self._loop.wanted.counts.items()},
            pending=pending,
        )

    def _process(self, name: str, role: Role, *, draining: bool = False) -> router_pb2.ProcessInfo:
        tracked = self._loop.fleet.tracked.get(name)
        if tracked is None:
            return router_pb2.ProcessInfo(name=name, role=role.value, state=Phase.STARTING.value)
        view = tracked.view
        state = view.phase.value
        if view.phase is Phase.RUNNING:
            state = "serving" if view.serving else Phase.STARTING.value
            state = "draining" if draining or view.draining else state
        return router_pb2.ProcessInfo(
            name=name,
            role=role.value,
            address=view.address,
            state=state,
            pid=tracked.handle.pid if tracked.handle is not None else 0,
            metrics_address=tracked.handle.metrics_address if tracked.handle is not None else "",
            restarts=max(0, view.incarnation - 1),
            detail=tracked.detail,
        )

    def _collection(self, record: Record) -> router_pb2.CollectionInfo:
        shards = [self._shard(record, number) for number in range(len(record.collection.shards))]
        return router_pb2.CollectionInfo(
            settings=record.settings,
            generation=record.collection.generation,
            shards=shards,
            documents=sum(shard.documents for shard in shards),
            generations=self._other_generations(record.settings.name),
        )

    def _other_generations(self, name: str) -> list[router_pb2.GenerationInfo]:
        found = [self._generation(record) for record in self._generations.others(name)]
        given_up = self._generations.given_up.get(name)
        if given_up is not None:
            found.append(
                router_pb2.GenerationInfo(
                    generation=given_up.generation, phase="given up", detail=given_up.detail
                )
            )
        return sorted(found, key=lambda each: each.generation)

    def _generation(self, record: Record) -> router_pb2.GenerationInfo:
        serving = self._loop.store.collections[record.settings.name]
        phase = record.collection.phase
        own = self._documents(record)
        return router_pb2.GenerationInfo(
            generation=record.collection.generation,
            phase=phase.value,
            documents=own,
            documents_total=(
                own if phase is GenerationPhase.PREVIOUS else self._documents(serving)
            ),
            settings=record.settings,
            shards=len(record.collection.shards),
            detail=self._generations.details.get(record.collection.name, ""),
        )

    def _documents(self, record: Record) -> int:
        statuses = self._loop.statuses
        refs = record.collection.refs()
        return sum(statuses[ref].documents for ref in refs if ref in statuses)

    def _shard(self, record: Record, number: int) -> router_pb2.ShardInfo:
        ref, placement = record.collection.ref(number), record.collection.shards[number]
        view = self._loop.observed().holder(ref, placement)
        info = router_pb2.ShardInfo(
            shard=number,
            server=placement.server,
            state=_SHARD_STATES[view.phase] if view is not None else "unreachable",
            detail=self._loop.details.get(ref, ""),
            moving_to=placement.target,
        )
        status = self._loop.statuses.get(ref)
        if view is None or status is None:
            published = self._loop.published.collection(record.collection.name)
            if published is not None and published.uuid == record.collection.uuid:
                info.documents = published.shards[number].documents
            return info
        info.documents = status.documents
        info.passages = status.passages
        info.tail_passages = status.tail_passages
        info.position = status.position
        info.index_bytes = sum(segment.bytes for segment in status.segments)
        info.recall = min((segment.recall for segment in status.segments), default=1.0)
        info.indexes.extend(segment.index for segment in status.segments)
        info.loss = status.loss
        info.detail = info.detail or status.detail
        info.tokens, info.token_bytes = status.tokens, status.token_bytes
        info.codec = status.codec
        info.new_tokens, info.far_tokens = status.new_tokens, status.far_tokens
        return info
