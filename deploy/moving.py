"""Moves a shard to another server while it serves, a step at a time.

The planner says which step is next. Every one begins and ends with what the catalog says, so that
a controller that is killed in the middle goes on where any other would:

1. *Aim*: the catalog names the server that is to have the shard.
2. *Prepare*: that server reads segments and log; the one that serves works on.
3. *Take over*: a higher epoch is durable in the catalog; then the new server opens the shard under
   it, which fences the old one's writing. The old one answers searches from what it holds, which
   is all that was ever acknowledged, and refuses writes, so that routers try them again.
4. *Finish*: the catalog names the new server as the one that serves; the topology follows. The
   old one answers until every router follows that topology.
"""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from deploy.calls import short
from deploy.core.planner import AimShard, FinishMove, Move, PrepareShard, TakeOver
from deploy.core.state import NEVER_NS, Placement, ShardView
from deploy.records import Record, shard_view
from shoal.errors import NotReady, ShoalError
from shoal.types import ShardRef

if TYPE_CHECKING:
    from deploy.reconciler import Reconciler

logger = logging.getLogger(__name__)


class Moves:
    """The moves of one controller.

    Args:
        loop: the controller's loop.
    """

    def __init__(self, loop: Reconciler) -> None:
        self._loop = loop
        self.arrivals: dict[ShardRef, ShardView] = {}
        """See `Observed.arrivals`."""
        self.steps: dict[ShardRef, int] = {}
        """See `Observed.steps`."""

    def step(self, action: Move) -> Coroutine[Any, Any, None]:
        """Notes that a step is under way, so that no plan has it again; gives its work. A step
        that fails is tried again later.
        """
        self.steps[action.ref] = NEVER_NS
        return self._step(action)

    async def _step(self, action: Move) -> None:
        ref, loop, retry_at_ns = action.ref, self._loop, 0
        try:
            await self._carry_out(action)
        except ShoalError as error:
            logger.warning("event=move_failed shard=%s why=%s", ref, short(error))
            loop.details[ref] = f"moving: {short(error)}"
            retry_at_ns = loop.retry_at(("move", ref))
        else:
            loop.failures.pop(("move", ref), None)
        self.steps[ref] = retry_at_ns

    async def _carry_out(self, action: Move) -> None:
        match action:
            case AimShard(_, ref, target):
                await self.aim(ref, target)
            case PrepareShard():
                await self._prepare(action)
            case TakeOver():
                await self._take_over(action)
            case FinishMove(_, ref, server):
                await self._finish(ref, server)

    async def aim(self, ref: ShardRef, target: str) -> None:
        """Records where a shard is to be; empty where it is now."""

        def aimed(placement: Placement) -> Placement:
            return replace(placement, target="" if target == placement.server else target)

        if await self._loop.store.place(ref, aimed):
            self._loop.details.pop(ref, None)
            logger.info("event=aimed shard=%s target=%s", ref, target or "none")

    async def _prepare(self, action: PrepareShard) -> None:
        loop, process = self._loop, self._loop.fleet.tracked[action.server].view
        status = await loop.calls.prepare_shard(
            process.address,
            self._record(action.ref),
            action.ref.shard,
            loop.settings.open_timeout_s,
        )
        self.arrivals[action.ref] = shard_view(status, process.name, process.incarnation)

    async def _take_over(self, action: TakeOver) -> None:
        loop, ref = self._loop, action.ref
        process = loop.fleet.tracked[action.server].view
        # The epoch is durable before anybody may write under it.
        if not await loop.store.place(ref, lambda p: replace(p, highest=action.epoch)):
            return
        logger.info(
            "event=take_over shard=%s server=%s writer_epoch=%d", ref, process.name, action.epoch
        )
        # If it fails, who serves the shard now has to become able to write it again.
        self.arrivals.pop(ref, None)
        status = await loop.calls.open_shard(
            process.address, self._record(ref), ref.shard, "", loop.settings.open_timeout_s
        )
        self.arrivals[ref] = shard_view(status, process.name, process.incarnation)

    async def _finish(self, ref: ShardRef, server: str) -> None:
        def arrived(placement: Placement) -> Placement:
            target = "" if server == placement.target else placement.target
            return Placement(server, placement.highest, target)

        loop = self._loop
        if await loop.store.place(ref, arrived):
            loop.details.pop(ref, None)
            loop.statuses.pop(ref, None)
            if ref in self.arrivals:
                loop.shards[ref] = self.arrivals.pop(ref)
            logger.info("event=moved shard=%s server=%s", ref, server)

    def _record(self, ref: ShardRef) -> Record:
        store = self._loop.store
        name = store.named(ref)
        if not name:
            raise NotReady(f"the generation of shard {ref.shard} was dropped meanwhile")
        return store.collections[name]
