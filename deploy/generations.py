"""Builds generations beside those that serve, and flips to them.

It looks at the records alone: a controller that is killed goes on where any other would. The one
moment that counts is `Store.flip`, a single compare-and-swap; before it the old generation
serves, after it the new one, and both are whole.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field

from deploy.calls import short
from deploy.copying import Copier
from deploy.core.build import LEAST_TOKENS, GenerationPhase, training_due
from deploy.reconciler import Reconciler
from deploy.records import Record, next_record
from deploy.shards import GenerationShards
from deploy.training import calibrate, train_codec
from shoal.errors import ShoalError, StaleTopology
from shoal.rpc.common.v1 import common_pb2
from shoal.rpc.shard.v1 import shard_pb2
from shoal.storage.directory import Storage

logger = logging.getLogger(__name__)

_LOOK_S = 0.5
_CLOSE = 64
"""So few documents are left to copy while writes wait."""
_PASSES = 20
"""Copies of what changed before writes are stopped whatever is left."""
_RETRY_S = 1.0
_OPEN_TIMEOUT_S = 3_600.0


@dataclass(slots=True)
class Progress:
    """How far a build is.

    Attributes:
        copied: documents copied or removed by this controller.
        detail: why it does not get on; empty when nothing is wrong.
    """

    copied: int = 0
    detail: str = ""


@dataclass(slots=True)
class _Quiet:
    """Since when a collection was not written to."""

    positions: tuple[int, ...] = ()
    since_s: float = field(default_factory=time.monotonic)


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
        self.progress: dict[str, Progress] = {}
        """Of builds, by the names of their records."""

    async def run(self) -> None:
        """Works until cancelled."""
        try:
            while True:
                for record in list(self._loop.store.collections.values()):
                    if record.collection.phase is GenerationPhase.SERVING:
                        await self._look(record)
                await asyncio.sleep(_LOOK_S)
        finally:
            for task in self._tasks.values():
                task.cancel()

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
        going = (GenerationPhase.TRAINING, GenerationPhase.COPYING)
        return next((r for r in self.others(name) if r.collection.phase in going), None)

    def previous(self, name: str) -> Record | None:
        """The generation before, if it is still there."""
        kept = (r for r in self.others(name) if r.collection.phase is GenerationPhase.PREVIOUS)
        return next(kept, None)

    # --- what is due ------------------------------------------------------

    async def _look(self, record: Record) -> None:
        name = record.settings.name
        following = self.building(name)
        task = self._tasks.get(name)
        if task is not None and not task.done():
            return
        if following is not None:
            self._tasks[name] = asyncio.create_task(self._build(name, following.collection.name))
            return
        await self._thaw(record)
        if self._trains(record):
            await self.begin(record, record.settings, len(record.collection.shards))

    async def begin(
        self, record: Record, settings: common_pb2.CollectionSettings, shards: int
    ) -> Record:
        """Records the next generation; the builder finds it there.

        Args:
            record: of the generation that serves.
            settings: of the next.
            shards: of the next.
        """
        trains = settings.kind == common_pb2.COLLECTION_KIND_COLBERT and (
            bool(record.settings.late.codec) or self._tokens(record) >= LEAST_TOKENS
        )
        fresh = common_pb2.CollectionSettings()
        fresh.CopyFrom(settings)
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

    def _trains(self, record: Record) -> bool:
        """A collection of kind colbert is to leave fixed point."""
        settings, collection = record.settings, record.collection
        if settings.kind != common_pb2.COLLECTION_KIND_COLBERT or settings.late.codec:
            return False
        if collection.highest > collection.generation:
            return False  # somebody went back to this one
        statuses = [self._loop.statuses.get(ref) for ref in collection.refs()]
        if any(status is None for status in statuses):
            return False
        positions = tuple(status.position for status in statuses if status is not None)
        known = self._quiet.setdefault(collection.identity, _Quiet())
        if known.positions != positions:
            self._quiet[collection.identity] = known = _Quiet(positions)
        quiet = time.monotonic() - known.since_s >= self._loop.settings.train_quiet_s
        return training_due(self._tokens(record), settings.late.train_at, quiet=quiet)

    async def _thaw(self, record: Record) -> None:
        """A serving generation takes writes, also where a build ended in the middle."""
        shards = GenerationShards(self._loop, record.collection.name)
        for number, ref in enumerate(record.collection.refs()):
            status = self._loop.statuses.get(ref)
            if status is not None and status.frozen:
                try:
                    await shards.call(number, "Freeze", shard_pb2.FreezeRequest(frozen=False))
                    status.frozen = False
                except ShoalError as error:
                    logger.info("event=thaw_failed shard=%s why=%s", ref, short(error))

    # --- building ---------------------------------------------------------

    async def _build(self, name: str, following: str) -> None:
        """Goes on until the generation serves, or can never."""
        progress = self.progress.setdefault(following, Progress())
        while following in self._loop.store.collections:
            try:
                await self._advance(name, following, progress)
                return
            except ShoalError as error:
                progress.detail = short(error)
                logger.warning("event=build_failed generation=%s why=%s", following, short(error))
                if error.caller_fault:
                    await self._loop.store.drop(following)
                    return
            await asyncio.sleep(_RETRY_S)

    async def _advance(self, name: str, following: str, progress: Progress) -> None:
        source = GenerationShards(self._loop, name)
        target = GenerationShards(self._loop, following)
        if target.record.collection.phase is GenerationPhase.TRAINING:
            await self._train(source, target)
            following = target.name
        self._loop.wake()
        if not await self._loop.until(lambda: target.open() and source.open(), _OPEN_TIMEOUT_S):
            raise StaleTopology(f"the shards of {following} do not open")

        def copied(count: int) -> None:
            progress.copied += count

        copier = Copier(source, target, copied)
        for _ in range(_PASSES):
            if await copier.once() <= _CLOSE:
                break
        if target.record.settings.late.codec:
            await self._calibrate(source, target)
        await self._flip(source, target, copier)
        progress.detail = ""

    async def _train(self, source: GenerationShards, target: GenerationShards) -> None:
        settings = common_pb2.CollectionSettings()
        settings.CopyFrom(target.record.settings)
        settings.late.codec = await train_codec(source, settings, self._storage)
        store = self._loop.store
        record = target.record.with_settings(settings).as_phase(GenerationPhase.COPYING)
        store.collections[target.name] = record
        await store.save(target.name)

    async def _calibrate(self, source: GenerationShards, target: GenerationShards) -> None:
        efforts = await calibrate(source, target)
        settings = common_pb2.CollectionSettings()
        settings.CopyFrom(target.record.settings)
        del settings.late.efforts[:]
        settings.late.efforts.extend(efforts)
        store = self._loop.store
        store.collections[target.name] = target.record.with_settings(settings)
        await store.save(target.name)

    async def _flip(
        self, source: GenerationShards, target: GenerationShards, copier: Copier
    ) -> None:
        """Stops writes, copies what is left, has the new generation serve."""
        try:
            epochs = await self._freeze(source, frozen=True)
            await copier.once()
            if not await copier.equal():
                raise StaleTopology("the generations differ after the last copy")
            # A shard that was opened again meanwhile took writes.
            if source.epochs() != epochs or not source.open() or not target.open():
                raise StaleTopology("a shard was opened again while its writes were stopped")
            await self.serve(source.name, target.name)
        except BaseException:
            await self._freeze(source, frozen=False)
            raise

    async def serve(self, name: str, to: str) -> Record:
        """Has another generation serve; the one before the previous goes."""
        earlier = self.previous(name)
        await self._loop.store.flip(name, to)
        if earlier is not None and earlier.collection.name != to:
            await self._loop.store.drop(earlier.collection.name)
        self._loop.wake()
        serving = self._loop.store.collections[name]
        logger.info(
            "event=flipped collection=%s generation=%d", name, serving.collection.generation
        )
        return serving

    async def freeze(self, record: Record, *, frozen: bool) -> list[int]:
        """Stops the writes of a generation, or lets them go on; gives its shards' epochs."""
        return await self._freeze(
            GenerationShards(self._loop, record.collection.name), frozen=frozen
        )

    async def _freeze(self, shards: GenerationShards, *, frozen: bool) -> list[int]:
        replies = [
            await shards.call(number, "Freeze", shard_pb2.FreezeRequest(frozen=frozen))
            for number in range(shards.count)
        ]
        return [reply.writer_epoch for reply in replies]
