"""The loop that makes the cluster what the catalog says it should be.

It carries out what `deploy.core.planner` decides, and publishes the topology.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from typing import Any

from deploy.calls import Calls, short
from deploy.core.build import GenerationPhase
from deploy.core.planner import (
    Action,
    AimShard,
    CloseShard,
    DropShard,
    FinishMove,
    ForgetDrop,
    LoadModel,
    OpenShard,
    PrepareShard,
    StartProcess,
    StopProcess,
    TakeOver,
    plan,
)
from deploy.core.shares import retry_delay_ns
from deploy.core.sightings import Report, Seen, Sighting, merge_report
from deploy.core.state import (
    NEVER_NS,
    Desired,
    Mention,
    Observed,
    Placement,
    Process,
    Role,
    ShardPhase,
    ShardView,
)
from deploy.core.topology import Topology, mentions, next_topology
from deploy.core.wanted import Wanted
from deploy.fleet import Fleet
from deploy.launchers.port import Launcher
from deploy.moving import Moves
from deploy.records import (
    Record,
    key_from_message,
    key_to_message,
    shard_phase,
    shard_size,
    shard_view,
    topology_from_message,
    topology_to_message,
)
from deploy.settings import ControllerSettings
from deploy.store import Store
from shoal.errors import CorruptLog, CorruptSegment, ShoalError
from shoal.rpc.controller.v1 import controller_pb2
from shoal.rpc.shard.v1 import shard_pb2
from shoal.types import ShardRef

logger = logging.getLogger(__name__)

_TICK_S = 0.5


class Reconciler:
    """Desired state, what is seen, and the tasks that bring one to the other.

    Args:
        settings: the controller's.
        store: its records, not loaded yet.
        launcher: starts processes.
        calls: calls to services.
    """

    def __init__(
        self, settings: ControllerSettings, store: Store, launcher: Launcher, calls: Calls
    ) -> None:
        self.settings = settings
        self.store = store
        self.calls = calls
        self._wake = asyncio.Event()
        self._changed = asyncio.Condition()
        self.fleet = Fleet(settings, launcher, calls, self._probe, self._wake.set)
        self.wanted = _first_wanted(settings)
        self.shards: dict[ShardRef, ShardView] = {}
        self.moves = Moves(self)
        self._named: dict[Mention, int] = {}
        self._named_from = 0
        self.statuses: dict[ShardRef, shard_pb2.ShardStatus] = {}
        self.details: dict[ShardRef, str] = {}
        self.failures: dict[object, int] = {}
        self._dropping: dict[ShardRef, int] = {}
        self._dropped: set[ShardRef] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._trouble: BaseException | None = None
        self._counts_ns = 0
        self._released = False
        self.published = Topology()

    # --- life ---------------------------------------------------------------

    async def recover(self) -> None:
        """Reads the catalog, and takes over the processes and shards that run."""
        await self.store.load()
        if self.store.wanted is None:
            await self.store.want(self.wanted)
        else:
            self._wants(self.store.wanted)
        self._published(topology_from_message(self.store.topology))
        self._named_from = self.published.version
        await self.fleet.adopt()

    async def want(self, wanted: Wanted) -> None:
        """Has other processes run; durable when it returns.

        Raises:
            Superseded: another controller works on this catalog.
        """
        await self.store.want(wanted)
        self._wants(wanted)
        self.wake()

    def _wants(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.fleet.share_out(wanted.counts)

    async def run(self) -> None:
        """Works until cancelled.

        Raises:
            Superseded: another controller works on this catalog.
        """
        while True:
            self._wake.clear()
            for action in plan(self.desired(), self.observed(), time.monotonic_ns()):
                self._begin(action)
            await self._publish()
            async with self._changed:
                self._changed.notify_all()
            if self._trouble is not None:
                raise self._trouble
            try:
                await asyncio.wait_for(self._wake.wait(), _TICK_S)
            except TimeoutError:
                continue

    async def release(self) -> None:
        """Ends what is under way; processes run on."""
        self._released = True
        self.fleet.release()
        for task in self._tasks:
            task.cancel()
        async with self._changed:
            self._changed.notify_all()

    def desired(self) -> Desired:
        """What should be."""
        records = sorted(self.store.collections.items())
        return Desired(
            self.wanted.specs,
            tuple(
                record.collection
                for _, record in records
                if record.collection.phase is not GenerationPhase.TRAINING
            ),
            tuple(record.collection for record in self.store.drops.values()),
        )

    def observed(self) -> Observed:
        """What is."""
        return Observed(
            processes=self.fleet.views(),
            shards=self.shards,
            arrivals=self.moves.arrivals,
            steps=self.moves.steps,
            named=self._named,
            named_from=self._named_from,
            version=self.published.version,
            dropping=self._dropping,
            dropped=frozenset(self._dropped),
        )

    def wake(self) -> None:
        """Has the loop look again at once."""
        self._wake.set()

    async def until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Waits for a condition of the state; False if it did not come in time."""
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(condition)
        except TimeoutError:
            return False
        return True

    async def topologies(self) -> AsyncIterator[controller_pb2.Topology]:
        """The newest published topology, then each newer one, until `release`."""
        version = -1

        def due() -> bool:
            return self._released or self.store.topology.version > version

        while True:
            async with self._changed:
                await self._changed.wait_for(due)
            if self._released:
                return
            version = self.store.topology.version
            yield self.store.topology

    # --- carrying out actions -------------------------------------------------

    def _begin(self, action: Action) -> None:
        match action:
            case StartProcess(spec, incarnation):
                self.fleet.start(spec, incarnation)
            case StopProcess(name):
                self._spawn(self.fleet.stop(name))
            case OpenShard(collection) if collection in self.store.flipping:
                pass  # a shard that opened now could take writes that nobody copies
            case OpenShard():
                self._spawn(self.open(action, self.opening(action)))
            case AimShard() | PrepareShard() | TakeOver() | FinishMove():
                self._spawn(self.moves.step(action))
            case CloseShard(ref, server):
                self._spawn(self._close(ref, server))
            case LoadModel():
                self.fleet.loading(action.encoder, action.fingerprint)
                self._spawn(self._load(action))
            case DropShard(ref, server):
                self._dropping[ref] = NEVER_NS
                self._spawn(self._drop(ref, server))
            case ForgetDrop(identity):
                del self.store.drops[identity]
                self._spawn(self.store.forget_drop(identity))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._trouble = task.exception()
        self._wake.set()

    def opening(self, action: OpenShard) -> Record:
        """Notes that a shard is being opened, so that no plan opens it again."""
        record = self.store.collections[action.collection].placed(
            action.ref.shard, Placement(action.server, action.epoch)
        )
        self.store.collections[action.collection] = record
        process = self.fleet.tracked[action.server].view
        self.shards[action.ref] = ShardView(
            action.server, process.incarnation, action.epoch, ShardPhase.OPENING
        )
        self.statuses.pop(action.ref, None)
        return record

    async def open(self, action: OpenShard, record: Record, accept_loss: str = "") -> None:
        """Records the epoch, then has the server open the shard."""
        ref, view = action.ref, self.shards[action.ref]
        address = self.fleet.tracked[action.server].view.address
        logger.info(
            "event=open collection=%s shard=%d server=%s writer_epoch=%d",
            action.collection,
            ref.shard,
            action.server,
            action.epoch,
        )
        # The epoch is durable before anybody may write under it.
        await self.store.save(action.collection)
        try:
            status = await self.calls.open_shard(
                address, record, ref.shard, accept_loss, self.settings.open_timeout_s
            )
        except ShoalError as error:
            opened = self._not_opened(ref, view, error)
        else:
            self.failures.pop(ref, None)
            self.details.pop(ref, None)
            self.statuses[ref] = status
            opened = shard_view(status, view.server, view.incarnation)
        if self.shards.get(ref) == view:
            self.shards[ref] = opened

    def _not_opened(self, ref: ShardRef, view: ShardView, error: ShoalError) -> ShardView:
        logger.warning("event=open_failed shard=%s why=%s", ref, short(error))
        self.details[ref] = short(error)
        if isinstance(error, CorruptLog | CorruptSegment):
            self.statuses[ref] = shard_pb2.ShardStatus(
                key=key_to_message(ref),
                state=shard_pb2.SHARD_STATE_CORRUPT,
                writer_epoch=view.epoch,
                loss=error.metadata.get("loss", ""),
                detail=error.message,
            )
            return replace(view, phase=ShardPhase.CORRUPT)
        return replace(view, phase=ShardPhase.FAILED, retry_at_ns=self.retry_at(ref))

    async def _close(self, ref: ShardRef, server: str) -> None:
        view = self.fleet.tracked[server].view
        self.fleet.update(replace(view, strays=view.strays - {ref}))
        try:
            await self.calls.close_shard(
                view.address, ref, drop=False, timeout_s=self.settings.probe_timeout_s
            )
        except ShoalError as error:
            # The next report names it again.
            logger.info("event=close_failed shard=%s why=%s", ref, short(error))

    async def _load(self, action: LoadModel) -> None:
        view = self.fleet.tracked[action.encoder].view
        key = (action.encoder, action.fingerprint)
        try:
            await self.calls.load_model(
                view.address, action.reference, action.fingerprint, self.settings.load_timeout_s
            )
        except ShoalError as error:
            logger.warning("event=load_failed process=%s why=%s", view.name, short(error))
            self.fleet.loading(action.encoder, action.fingerprint, self.retry_at(key))
        else:
            self.failures.pop(key, None)
            current = self.fleet.tracked[action.encoder].view
            self.fleet.update(
                replace(current, fingerprints=current.fingerprints | {action.fingerprint})
            )

    async def _drop(self, ref: ShardRef, server: str) -> None:
        address = self.fleet.tracked[server].view.address
        try:
            await self.calls.close_shard(
                address, ref, drop=True, timeout_s=self.settings.open_timeout_s
            )
        except ShoalError as error:
            logger.warning("event=drop_failed shard=%s why=%s", ref, short(error))
            self._dropping[ref] = self.retry_at(ref)
            return
        self._dropped.add(ref)
        for known in (self.shards, self.statuses, self.details, self._dropping):
            known.pop(ref, None)

    def retry_at(self, key: object) -> int:
        """When to try again what failed once more."""
        self.failures[key] = self.failures.get(key, 0) + 1
        return time.monotonic_ns() + retry_delay_ns(self.failures[key])

    # --- what is seen ----------------------------------------------------------

    async def _probe(self, process: Process) -> None:
        if process.role is Role.ENCODER:
            models = await self.calls.encoder_models(process.address, self.settings.probe_timeout_s)
            self.fleet.update(replace(self.fleet.tracked[process.name].view, fingerprints=models))
        elif process.role is Role.SERVER:
            await self._report(process)
        else:
            status = await self.calls.router(process.address, self.settings.probe_timeout_s)
            view = self.fleet.tracked[process.name].view
            self.fleet.update(
                replace(
                    view,
                    advertised=status.address,
                    draining=status.draining,
                    topology_version=status.topology_version,
                )
            )

    async def _report(self, process: Process) -> None:
        asked = frozenset(
            ref
            for views in (self.shards, self.moves.arrivals)
            for ref, view in views.items()
            if view.server == process.name and view.phase in {ShardPhase.OPEN, ShardPhase.PREPARED}
        )
        answer = await self.calls.shard_statuses(process.address, self.settings.probe_timeout_s)
        sightings = tuple(
            Sighting(
                key_from_message(status.key),
                status.writer_epoch,
                shard_phase(status.state),
                status.documents,
                shard_size(status),
            )
            for status in answer
        )
        report = Report(process.name, process.incarnation, sightings, asked)
        known = Seen(self.shards, self.moves.arrivals)
        seen = merge_report(self.desired().collections, known, report)
        for status in answer:
            view = seen.shards.get(key_from_message(status.key))
            if view and (view.server, view.epoch) == (process.name, status.writer_epoch):
                self.statuses[key_from_message(status.key)] = status
        if seen.shards != self.shards or seen.arrivals != self.moves.arrivals:
            self.shards, self.moves.arrivals = dict(seen.shards), dict(seen.arrivals)
            self._wake.set()
        current = self.fleet.tracked[process.name].view
        self.fleet.update(replace(current, strays=seen.strays, reported=True))

    # --- publishing --------------------------------------------------------------

    async def _publish(self) -> None:
        now_ns = time.monotonic_ns()
        counts_due = now_ns - self._counts_ns >= self.settings.counts_interval_s * 1e9
        topology = next_topology(self.desired(), self.observed(), self.published, counts_due)
        if topology is None:
            return
        await self.store.publish(topology_to_message(topology, self.store.collections))
        self._published(topology)
        self._counts_ns = now_ns
        logger.info("event=published topology_version=%d", topology.version)

    def _published(self, topology: Topology) -> None:
        self.published = topology
        self._named.update(dict.fromkeys(mentions(topology), topology.version))


def _first_wanted(settings: ControllerSettings) -> Wanted:
    """The processes of a cluster that was never scaled."""
    return Wanted.of(
        {
            Role.ROUTER: settings.routers,
            Role.SERVER: settings.servers,
            Role.ENCODER: settings.encoders,
        }
    )
