"""Builds generations beside those that serve, and flips to them.

It looks at the records alone: a controller that is killed goes on where any other would. The one
moment that counts is `Store.flip`, a single compare-and-swap; before it the old generation
serves, after it the new one, and both are whole.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from deploy.calls import WRITERS, short
from deploy.clock import now_ns
from deploy.copying import Copier
from deploy.core.build import LEAST_TOKENS, GenerationPhase, training_due
from deploy.core.state import Role
from deploy.reconciler import Reconciler
from deploy.records import Record, next_record
from deploy.shards import GenerationShards
from deploy.store import Superseded
from deploy.training import calibrate, train_codec
from shard_service.codecs import drop_codecs
from shoal.errors import BuildUnderWay, NoPreviousGeneration, ShoalError, StaleTopology
from shoal.rpc.common.v1 import common_pb2
from shoal.rpc.shard.v1 import shard_pb2
from shoal.storage.directory import Storage

logger = logging.getLogger(__name__)

_BUILDING = (GenerationPhase.TRAINING, GenerationPhase.COPYING)
_LOOK_S = 0.5
_CLOSE = 64
"""So few documents are left to copy while writes wait."""
_PASSES = 20
"""Copies of what changed before writes are stopped whatever is left."""
_RETRY_S = 1.0
_ADMIT_TIMEOUT_S = 10.0
_OPEN_TIMEOUT_S = 3_600.0


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A generation that can never be built, and why."""

    generation: int
    detail: str


@dataclass(slots=True)
class _Quiet:
    """Since when a collection was not written to."""

    positions: tuple[int, ...] = ()
    since_ns: int = field(default_factory=now_ns)


class Generations:
    """The builds of one controller.

    Args:
        loop: the running controller.
        storage: where codecs are kept.
    """

    def __init__(self, loop: Reconciler, storage: Storage) -> None:
        self._loop, self._storage = loop, storage
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._quiet: dict[str, _Quiet] = {}
        self._uuids: set[str] | None = None
        self.turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """By collection: held by whoever changes which writes its generations take."""
        self.given_up: dict[str, GivenUp] = {}
        """By collection, the last build if it was given up."""
        self.details: dict[str, str] = {}
        """Why builds do not get on, by the names of their records."""

    async def run(self) -> None:
        """Works until cancelled."""
        try:
            while True:
                for record in list(self._loop.store.collections.values()):
                    if record.collection.phase is GenerationPhase.SERVING:
                        await self._look(record)
                await self._drop_codecs()
                await asyncio.sleep(_LOOK_S)
        finally:
            for task in self._tasks.values():
                task.cancel()

    async def _drop_codecs(self) -> None:
        """Codecs go with the last generation of their collection."""
        store = self._loop.store
        uuids = {
            record.collection.uuid
            for record in (*store.collections.values(), *store.drops.values())
        }
        if uuids != self._uuids:
            await asyncio.to_thread(drop_codecs, uuids, self._storage)
            self._uuids = uuids

    def others(self, name: str) -> list[Record]:
        """A collection's generations that do not serve, ascending by number."""
        found = [
            record
            for record in self._loop.store.collections.values()
            if record.settings.name == name
            and record.collection.phase is not GenerationPhase.SERVING
        ]
        return sorted(found, key=lambda record: record.collection.generation)

    def building(self, name: str) -> Record | None:
        """The generation that is being built, if one is."""
        return next((r for r in self.others(name) if r.collection.phase in _BUILDING), None)

    def previous(self, name: str) -> Record | None:
        """The generation before, if it is still there."""
        serving = self._loop.store.collections.get(name)
        if serving is None:
            return None
        kept = (
            record
            for record in self.others(name)
            if record.collection.generation == serving.collection.previous
            and record.collection.phase is GenerationPhase.PREVIOUS
        )
        return next(kept, None)

    # --- what is due ------------------------------------------------------

    async def _look(self, record: Record) -> None:
        name = record.settings.name
        following = self.building(name)
        task = self._tasks.get(name)
        if task is not None and task.done():
            del self._tasks[name]
            if not task.cancelled():
                task.result()  # raises Superseded, which ends this controller
        if following is not None and name not in self._tasks:
            self.given_up.pop(name, None)
            build = self._build(name, following.collection.name)
            self._tasks[name] = asyncio.create_task(build)
        if self.turns[name].locked():
            return  # a flip is under way, and sees to it
        async with self.turns[name]:
            try:
                await self._settle(name)
            except ShoalError as error:
                logger.warning("event=settle_failed collection=%s why=%s", name, short(error))

    async def _settle(self, name: str) -> None:
        """Outside of flips: no generation too many, writers as they should be, and training
        where it is due.
        """
        record = self._loop.store.collections.get(name)
        if record is None:
            return
        for each in self.others(name):
            own = each.collection
            kept = own.phase in _BUILDING or own.generation == record.collection.previous
            if not kept:
                await self._loop.store.drop(own.name)
        for each in (record, *self.others(name)):
            await self._admit(each)
        if self.building(name) is None and await self._trains(record):
            await self._begin(record, record.settings, len(record.collection.shards))

    async def begin(
        self,
        record: Record,
        settings: common_pb2.CollectionSettings,
        shards: int,
        *,
        keeps_codec: bool = False,
    ) -> Record:
        """Records the next generation; the builder finds it there.

        Args:
            record: of the generation that serves.
            settings: of the next.
            shards: of the next.
            keeps_codec: a trained codec and its efforts are to serve on, if there is one.

        Raises:
            BuildUnderWay: one is being built already.
            StaleTopology: that generation does not serve any more.
        """
        name = record.settings.name
        self._check_not_building(name)
        async with self.turns[name]:
            self._check_not_building(name)
            serving = self._loop.store.collections.get(name)
            if serving is None or serving.collection.identity != record.collection.identity:
                raise StaleTopology(f"another generation of {name} serves now; ask again")
            return await self._begin(record, settings, shards, keeps_codec=keeps_codec)

    def _check_not_building(self, name: str) -> None:
        if self.building(name) is not None:
            raise BuildUnderWay(f"the next generation of {name} is being built already")

    async def _begin(
        self,
        record: Record,
        settings: common_pb2.CollectionSettings,
        shards: int,
        *,
        keeps_codec: bool = False,
    ) -> Record:
        keeps = keeps_codec and bool(record.settings.late.codec)
        trains = not keeps and (
            settings.kind == common_pb2.COLLECTION_KIND_COLBERT
            and (bool(record.settings.late.codec) or self._tokens(record) >= LEAST_TOKENS)
        )
        fresh = common_pb2.CollectionSettings()
        fresh.CopyFrom(settings)
        if not keeps:
            fresh.late.codec = ""
            del fresh.late.efforts[:]
        if fresh.kind != common_pb2.COLLECTION_KIND_COLBERT:
            fresh.ClearField("late")
        following = next_record(record, fresh, shards, trains=trains)
        await self._loop.store.create(following)
        self._loop.wake()
        return following

    def _tokens(self, record: Record) -> int:
        refs = record.collection.refs()
        return sum(self._loop.statuses[ref].tokens for ref in refs if ref in self._loop.statuses)

    async def _trains(self, record: Record) -> bool:
        """A collection of kind colbert is to leave fixed point."""
        settings, collection = record.settings, record.collection
        if settings.kind != common_pb2.COLLECTION_KIND_COLBERT or settings.late.codec:
            return False
        if collection.highest > collection.generation:
            return False  # somebody went back to this one, or the next one was given up
        statuses = [self._loop.statuses.get(ref) for ref in collection.refs()]
        if any(status is None for status in statuses):
            return False
        positions = tuple(status.position for status in statuses if status is not None)
        known = self._quiet.setdefault(collection.identity, _Quiet())
        if known.positions != positions:
            self._quiet[collection.identity] = known = _Quiet(positions)
        quiet = now_ns() - known.since_ns >= self._loop.settings.train_quiet_s * 1e9
        tokens, train_at = self._tokens(record), settings.late.train_at
        if not training_due(tokens, train_at, quiet=quiet):
            return False
        return training_due(tokens, train_at, quiet=not await self._ingested(settings.name))

    async def _ingested(self, name: str) -> bool:
        """A stream of documents is open: while texts are encoded, nothing is written for long."""
        for process in self._loop.fleet.views().values():
            if process.role is not Role.ROUTER or not process.address:
                continue
            try:
                found = await self._loop.calls.open_ingests(process.address, _ADMIT_TIMEOUT_S)
            except ShoalError as error:
                # Its streams end with it, or it tells the next time.
                logger.info("event=router_silent name=%s why=%s", process.name, short(error))
                continue
            if found.get(name):
                return True
        return False

    async def _admit(self, record: Record) -> None:
        """The shards take the writes that they should, also where a build ended in the middle."""
        shards = GenerationShards(self._loop, record.collection.name)
        wanted = WRITERS[record.collection.phase]
        for number, ref in enumerate(record.collection.refs()):
            status = self._loop.statuses.get(ref)
            if (
                status is not None
                and status.writers != wanted
                and await _set_writers_of(shards, number, wanted)
            ):
                status.writers = wanted

    # --- building ---------------------------------------------------------

    async def _build(self, name: str, following: str) -> None:
        """Goes on until the generation serves, or can never."""
        try:
            while self._is_building(following):
                try:
                    await self._advance(name, following)
                except ShoalError as error:
                    self.details[following] = short(error)
                    logger.warning("event=build_failed name=%s why=%s", following, short(error))
                    await asyncio.sleep(_RETRY_S)
                except Superseded:
                    raise
                except Exception:
                    # A build must not take the controller along, which does much else.
                    self.details[following] = "building failed; the controller's log says why"
                    logger.exception("event=build_failed name=%s", following)
                    await asyncio.sleep(_RETRY_S)
        finally:
            self.details.pop(following, None)

    def _is_building(self, following: str) -> bool:
        """It is neither dropped nor serves; nor has served, and got its name back by that."""
        record = self._loop.store.collections.get(following)
        return record is not None and record.collection.phase in _BUILDING

    async def _advance(self, name: str, following: str) -> None:
        """Has the generation serve, or gives it up."""
        try:
            await self._bring_to_serve(name, following)
        except ShoalError as error:
            if not error.caller_fault:
                raise
            await self._give_up(name, following, short(error))

    async def _give_up(self, name: str, following: str, why: str) -> None:
        store = self._loop.store
        number = store.collections[following].collection.generation
        # Its number is not given again: what belongs to it may come, or go, later.
        store.collections[name] = store.collections[name].numbered(number)
        await store.save(name)
        await store.drop(following)
        self.given_up[name] = GivenUp(number, why)

    async def _bring_to_serve(self, name: str, following: str) -> None:
        source = GenerationShards(self._loop, name)
        target = GenerationShards(self._loop, following)
        if target.record.collection.phase is GenerationPhase.TRAINING:
            await self._train(source, target)
            following = target.name
        self._loop.wake()
        if not await self._loop.until(lambda: target.open() and source.open(), _OPEN_TIMEOUT_S):
            raise StaleTopology(f"the shards of {following} do not open")

        copier = Copier(source, target)
        for _ in range(_PASSES):
            if await copier.once() <= _CLOSE:
                break
        if target.record.settings.late.codec != source.record.settings.late.codec:
            await self._calibrate(source, target)
        await self._flip(source, target, copier)

    async def _train(self, source: GenerationShards, target: GenerationShards) -> None:
        settings = common_pb2.CollectionSettings()
        settings.CopyFrom(target.record.settings)
        settings.late.codec = await train_codec(source, target.record, self._storage)
        store = self._loop.store
        record = target.record.with_settings(settings).as_phase(GenerationPhase.COPYING)
        store.collections[target.name] = record
        await store.save(target.name)

    async def _calibrate(self, source: GenerationShards, target: GenerationShards) -> None:
        settings = common_pb2.CollectionSettings()
        settings.CopyFrom(target.record.settings)
        await calibrate(source, target, settings.late)
        store = self._loop.store
        store.collections[target.name] = target.record.with_settings(settings)
        await store.save(target.name)

    async def _flip(
        self, source: GenerationShards, target: GenerationShards, copier: Copier
    ) -> None:
        """Stops writes, copies what is left, has the new generation serve."""
        async with self.turns[source.name]:
            try:
                stopped = await _set_writers(source, shard_pb2.WRITERS_NOBODY)
                await copier.once()
                # Nor may a copy that was given up arrive after the comparison.
                closed = await _set_writers(target, shard_pb2.WRITERS_NOBODY)
                if not await copier.equal():
                    raise StaleTopology("the generations differ after the last copy")
                _check_unopened(source, stopped)
                _check_unopened(target, closed)
                await self._serve(source.name, target.name, stopped.positions)
            except BaseException:
                if target.name in self._loop.store.collections:
                    await _reopen(source, shard_pb2.WRITERS_UNSPECIFIED)
                    await _reopen(target, shard_pb2.WRITERS_BUILDER)
                raise
            await self._admit_now(source.name)

    async def rollback(self, name: str) -> Record:
        """Serves the generation before again; gives its record.

        Raises:
            BuildUnderWay: the next one is being built.
            NoPreviousGeneration: there is none to go back to.
            StaleTopology: one of its shards, or of those that serve, is not open.
        """
        self._check_not_building(name)
        async with self.turns[name]:
            self._check_not_building(name)
            previous = self.previous(name)
            if previous is None:
                raise NoPreviousGeneration(f"{name} has no generation to go back to")
            source = GenerationShards(self._loop, name)
            target = GenerationShards(self._loop, previous.collection.name)
            try:
                stopped = await _set_writers(source, shard_pb2.WRITERS_NOBODY)
                _check_unopened(source, stopped)
                _check_unopened(target, None)
                await self._serve(name, target.name, None)
            except BaseException:
                if target.name in self._loop.store.collections:
                    await _reopen(source, shard_pb2.WRITERS_UNSPECIFIED)
                raise
            await self._admit_now(name)
        return self._loop.store.collections[name]

    async def _serve(self, name: str, to: str, handed_over: Sequence[int] | None) -> None:
        await self._loop.store.flip(name, to, handed_over)
        self._loop.wake()
        generation = self._loop.store.collections[name].collection.generation
        logger.info("event=flipped collection=%s generation=%d", name, generation)

    async def _admit_now(self, name: str) -> None:
        """The generation that serves takes users' writes; else `_look` sees to it soon."""
        await _reopen(GenerationShards(self._loop, name), shard_pb2.WRITERS_UNSPECIFIED)


@dataclass(frozen=True, slots=True)
class _Stopped:
    """Shards whose writers were set: their positions, and the epochs that said so."""

    positions: list[int]
    epochs: list[int]


def _word(
    shards: GenerationShards, number: int, writers: shard_pb2.Writers.ValueType
) -> shard_pb2.SetWritersRequest:
    """Says whose writes a shard takes. One that comes late must not undo a later one."""
    return shard_pb2.SetWritersRequest(
        writers=writers,
        writer_epoch=shards.epochs()[number],
        order=shards.loop.store.next_order(),
    )


async def _set_writers(shards: GenerationShards, writers: shard_pb2.Writers.ValueType) -> _Stopped:
    replies = [
        await shards.call(number, "SetWriters", _word(shards, number, writers), _ADMIT_TIMEOUT_S)
        for number in range(shards.count)
    ]
    return _Stopped([r.position for r in replies], [r.writer_epoch for r in replies])


async def _reopen(shards: GenerationShards, writers: shard_pb2.Writers.ValueType) -> None:
    """Sets the writers of every shard that answers; one that does not is seen to later."""
    for number in range(shards.count):
        await _set_writers_of(shards, number, writers)


async def _set_writers_of(
    shards: GenerationShards, number: int, writers: shard_pb2.Writers.ValueType
) -> bool:
    """Sets the writers of one shard; False if it does not answer."""
    try:
        request = _word(shards, number, writers)
        await shards.call(number, "SetWriters", request, _ADMIT_TIMEOUT_S)
    except ShoalError as error:
        logger.info(
            "event=admit_failed generation=%s shard=%d why=%s", shards.name, number, short(error)
        )
        return False
    return True


def _check_unopened(shards: GenerationShards, stopped: _Stopped | None) -> None:
    """Raises StaleTopology unless every shard is open, and is the one whose writers were set."""
    if not shards.open() or (stopped is not None and shards.epochs() != stopped.epochs):
        raise StaleTopology(f"a shard of {shards.name} is not open, or was opened again")
