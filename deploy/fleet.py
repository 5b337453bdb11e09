"""The processes of a cluster as the controller follows them: started, watched, probed."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from deploy.calls import Calls
from deploy.clock import now_ns
from deploy.core.shares import Share, failures_in_row, restart_delay_ns, shares
from deploy.core.state import NEVER_NS, Phase, Process, ProcessSpec, Role
from deploy.launchers.port import Handle, Launcher, StartFailed, StartSpec
from deploy.services import PREFIXES, own_environment
from deploy.settings import ControllerSettings
from shoal.errors import ClusterUnreachable, DeadlineExceeded, ShoalError

logger = logging.getLogger(__name__)

Probe = Callable[[Process], Awaitable[None]]


@dataclass(slots=True)
class Tracked:
    """A process and what the controller remembers of it."""

    view: Process
    handle: Handle | None = None
    started_ns: int = 0
    failures: int = 0
    misses: int = 0
    detail: str = ""
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


class Fleet:
    """Every process by name.

    Args:
        settings: the controller's.
        launcher: starts processes.
        calls: for health checks.
        probe: asks a process that answers for more than its health.
        changed: is called after every change.
    """

    def __init__(
        self,
        settings: ControllerSettings,
        launcher: Launcher,
        calls: Calls,
        probe: Probe,
        changed: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._launcher = launcher
        self._calls = calls
        self._probe = probe
        self._changed = changed
        self._shares: Mapping[Role, Share] = {}
        self.share_out(
            {
                Role.ENCODER: settings.encoders,
                Role.ROUTER: settings.routers,
                Role.SERVER: settings.servers,
            }
        )
        self.tracked: dict[str, Tracked] = {}

    def share_out(self, counts: Mapping[Role, int]) -> None:
        """Shares the cores out among so many processes; what runs keeps its share."""
        self._shares = shares({Role.CONTROLLER: 1, **counts}, self._launcher.cores())

    def views(self) -> dict[str, Process]:
        """Every process as the planner sees it."""
        return {name: tracked.view for name, tracked in self.tracked.items()}

    def update(self, view: Process) -> None:
        """Replaces what is seen of a process, if it is still that incarnation."""
        tracked = self.tracked.get(view.name)
        if tracked is None or tracked.view.phase is not Phase.RUNNING:
            return
        if tracked.view.incarnation == view.incarnation and tracked.view != view:
            tracked.view = view
            self._changed()

    async def adopt(self) -> None:
        """Takes over what an earlier controller started, and asks it once how it is."""
        for handle in await self._launcher.adopt():
            tracked = Tracked(Process(handle.name, handle.role, Phase.STARTING, handle.incarnation))
            self.tracked[handle.name] = tracked
            logger.info("event=adopted process=%s pid=%d", handle.name, handle.pid)
            self._runs(tracked, handle)
        await asyncio.gather(*(self._probe_once(tracked) for tracked in self.tracked.values()))

    def start(self, spec: ProcessSpec, incarnation: int) -> None:
        """Starts a process in the background."""
        tracked = self.tracked.setdefault(
            spec.name, Tracked(Process(spec.name, spec.role, Phase.DEAD, 0))
        )
        tracked.view = Process(spec.name, spec.role, Phase.STARTING, incarnation)
        tracked.started_ns = now_ns()
        self._begin(tracked, self._start(tracked, spec))

    async def stop(self, name: str) -> None:
        """Ends a process for good."""
        tracked = self.tracked[name]
        self._end_tasks(tracked)
        tracked.view = replace(tracked.view, phase=Phase.STOPPING)
        if tracked.handle is not None:
            await tracked.handle.stop(self._settings.stop_grace_s)
        # Only now may another one of that name start.
        del self.tracked[name]
        await self._calls.forget(tracked.view.address)
        self._changed()

    def release(self) -> None:
        """Follows processes no longer; they run on."""
        for tracked in self.tracked.values():
            self._end_tasks(tracked)

    async def _start(self, tracked: Tracked, spec: ProcessSpec) -> None:
        incarnation = tracked.view.incarnation
        logger.info("event=start process=%s incarnation=%d", spec.name, incarnation)
        try:
            handle = await self._launcher.start(
                StartSpec(
                    name=spec.name,
                    role=spec.role,
                    incarnation=incarnation,
                    environment=self._environment(spec),
                    share=self._shares[spec.role],
                )
            )
        except (StartFailed, TimeoutError, OSError) as error:
            await self._died(tracked, str(error) or type(error).__name__)
            return
        logger.info("event=listens process=%s address=%s", spec.name, handle.address)
        self._runs(tracked, handle)

    def _runs(self, tracked: Tracked, handle: Handle) -> None:
        tracked.handle = handle
        tracked.misses = 0
        tracked.view = replace(tracked.view, phase=Phase.RUNNING, address=handle.address)
        self._begin(tracked, self._watch(tracked, handle))
        self._begin(tracked, self._probe_forever(tracked, handle))
        self._changed()

    async def _watch(self, tracked: Tracked, handle: Handle) -> None:
        why = await handle.exited()
        if tracked.handle is handle:
            await self._died(tracked, why)

    async def _died(self, tracked: Tracked, why: str) -> None:
        address, died_ns = tracked.view.address, now_ns()
        lived_ns = died_ns - tracked.started_ns
        tracked.failures = failures_in_row(tracked.failures, lived_ns)
        delay_ns = restart_delay_ns(tracked.failures, lived_ns)
        tracked.handle = None
        tracked.detail = why
        tracked.view = Process(
            tracked.view.name,
            tracked.view.role,
            Phase.DEAD,
            tracked.view.incarnation,
            retry_at_ns=died_ns + delay_ns,
        )
        logger.warning(
            "event=died process=%s lived_ms=%d restart_in_ms=%d why=%r",
            tracked.view.name,
            lived_ns // 1_000_000,
            delay_ns // 1_000_000,
            why,
        )
        self._changed()
        await self._calls.forget(address)

    async def _probe_forever(self, tracked: Tracked, handle: Handle) -> None:
        while tracked.handle is handle:
            await self._probe_once(tracked)
            serving = tracked.view.serving
            # What is starting is asked more often: somebody waits for it.
            await asyncio.sleep(self._settings.probe_interval_s * (1.0 if serving else 0.2))

    async def _probe_once(self, tracked: Tracked) -> None:
        handle, view = tracked.handle, tracked.view
        if handle is None:
            return
        try:
            serving = await self._calls.serving(view.address, self._settings.probe_timeout_s)
            tracked.misses = 0
            self.update(replace(tracked.view, serving=serving))
            if serving:
                tracked.detail = ""
            await self._probe(tracked.view)
        except ShoalError as error:
            tracked.misses += isinstance(error, ClusterUnreachable | DeadlineExceeded)
            logger.info("event=probe_failed process=%s why=%s", view.name, error.reason)
        if tracked.misses >= self._settings.hung_after_misses and tracked.handle is handle:
            logger.warning("event=hung process=%s misses=%d", view.name, tracked.misses)
            await handle.stop(0.0)

    def loading(self, name: str, fingerprint: str, retry_at_ns: int = NEVER_NS) -> None:
        """Notes that an encoder loads a model, or when to ask it again."""
        view = self.tracked[name].view
        self.update(replace(view, loads={**view.loads, fingerprint: retry_at_ns}))

    def _environment(self, spec: ProcessSpec) -> dict[str, str]:
        number = int(spec.name.rpartition("-")[2])
        prefix, settings = PREFIXES[spec.role], self._settings
        own = {"HOST": settings.host, "PORT": "0"}
        threads = str(self._shares[spec.role].threads)
        given = own_environment()
        if spec.role is Role.ENCODER:
            own["THREADS"] = given.get(prefix + "THREADS", threads)
        elif spec.role is Role.SERVER:
            own["DATA"] = settings.data
            own["SEARCH_THREADS"] = given.get(prefix + "SEARCH_THREADS", threads)
        else:
            own |= {"DATA": settings.data, "NAME": spec.name}
            step = settings.router_port_step
            # Nobody kept ports free for routers that came later; the topology names theirs.
            if number < settings.routers or not step:
                own["PORT"] = str(settings.router_port + number * step)
        return given | {prefix + name: value for name, value in own.items()}

    def _begin(self, tracked: Tracked, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        tracked.tasks.add(task)
        task.add_done_callback(tracked.tasks.discard)

    def _end_tasks(self, tracked: Tracked) -> None:
        for task in tracked.tasks:
            task.cancel()
