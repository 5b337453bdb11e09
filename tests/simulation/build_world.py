"""A controller that builds generations, among simulated servers, on virtual time, from one seed.

The controller is the real one: Generations, Copier, Reconciler, planner, Fleet, Store and
Administration, with the real messages. Simulated are the network (it delays, loses and repeats),
the catalog's disk (it fills), processes (they die and start), and users who write all along.
Every catalog write and every durable write of a shard is checked as it happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import zlib
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from unittest import mock

from deploy.administration import Administration
from deploy.controller import together
from deploy.core.build import GenerationPhase
from deploy.core.creation import Bounds, Wish, check_wish, settle
from deploy.core.state import Role
from deploy.generations import Generations
from deploy.launchers.port import StartSpec
from deploy.reconciler import Reconciler
from deploy.records import Record, new_record, record_from_bytes
from deploy.settings import ControllerSettings
from deploy.store import TOPOLOGY_KEY, Store, Superseded
from shoal.errors import ShoalError
from shoal.ids import shard_of
from shoal.rpc.controller.v1 import controller_pb2
from shoal.rpc.router.v1 import router_pb2
from shoal.settings import Limits
from shoal.types import Kind, ShardRef
from tests.simulation.build_network import Network, SimCalls, SimCatalog, SimHandle, SimLauncher
from tests.simulation.build_servers import DIM, USERS, DiskShard, SimServer
from tests.simulation.build_users import User
from tests.simulation.virtual_loop import BEGIN_S, Owner, VirtualLoop

NAME = "papers"
UUID = b"u" * 16
SERVING_KEY = f"collections/{NAME}"
CLOSED_S = 15.0
"""Longest that shards may refuse users while everything is well and nothing flips."""
FLIP_S = 60.0
"""Longest that one flip may keep them closed while everything is well."""
SETTLED_S = 240.0
"""When everything must be well after the last fault."""


@dataclass
class Dials:
    """What this seed's world is like (drawn from the seed: swarm testing). Rates are per call."""

    kind: Kind = Kind.SINGLE
    shards: int = 2
    faulty_s: float = 0.0
    documents: int = 12
    delay_s: float = 0.002
    loss: float = 0.0
    late: float = 0.0
    repeat: float = 0.0
    disk_full: float = 0.0
    leave: float = 0.0
    server_kill_s: float = 0.0
    server_hang_s: float = 0.0
    controller_kill_s: float = 0.0
    start_s: float = 1.0
    wish_s: float = 10.0
    rollbacks: bool = False

    @classmethod
    def draw(cls, dice: random.Random) -> Dials:
        def rate(most: float) -> float:
            return dice.choice([0.0, dice.random() * most])

        return cls(
            kind=dice.choice([Kind.SINGLE, Kind.SINGLE, Kind.COLBERT]),
            shards=dice.randint(1, 4),
            faulty_s=dice.choice([40.0, 90.0]),
            documents=dice.choice([0, 3, 18]),
            delay_s=dice.choice([0.001, 0.02, 0.2]),
            loss=rate(0.03),
            late=rate(0.03),
            repeat=rate(0.1),
            disk_full=rate(0.1),
            leave=rate(0.5),
            server_kill_s=dice.choice([0.0, 8.0, 40.0]),
            server_hang_s=dice.choice([0.0, 0.0, 15.0]),
            controller_kill_s=dice.choice([0.0, 8.0, 40.0]),
            start_s=dice.choice([0.3, 3.0, 20.0]),
            wish_s=dice.choice([3.0, 15.0]),
            rollbacks=dice.random() < 0.4,
        )


@dataclass
class Crash:
    """Ends one process right after the controller's effect of this number."""

    victim: str
    effect: int


@dataclass
class Running:
    """One life of the controller."""

    owner: Owner
    store: Store
    reconciler: Reconciler
    generations: Generations
    administration: Administration
    ready: bool = False


class _Log(logging.Handler):
    """What the controller logs is part of the trace; it has no reason to log an error."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        self._world.note(record.getMessage())
        if record.levelno >= logging.ERROR:
            self._world.broken(f"{record.getMessage()}: {record.exc_info and record.exc_info[1]!r}")


class Violation(AssertionError):
    """Something that must hold does not."""


@dataclass
class World:
    """One run.

    Args:
        seed: of everything.
        dials: drawn from the seed where None.
        crash: ends a process at one step.
    """

    seed: int
    dials: Dials | None = None
    crash: Crash | None = None
    faults: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.rules = self.dials or Dials.draw(self.dice)
        self.loop = VirtualLoop(lambda: self.dice.expovariate(1 / 0.003))
        self.events: deque[str] = deque(maxlen=400)
        self.digest = 0
        self.faulty = self.went_back = False
        self.catalog = SimCatalog(self)
        self.network = Network(self)
        self.disk: dict[ShardRef, DiskShard] = {}
        self.codecs: set[tuple[str, str]] = set()
        self.servers: dict[str, SimHandle] = {}
        self.controller: Running | None = None
        self.frozen: dict[int, dict[str, bytes]] = {}
        self.effects = 0
        self.counting = False
        self.flips = 0
        self.violation: Violation | None = None
        self.settings = ControllerSettings(servers=2, encoders=0, routers=0)

    # --- a run --------------------------------------------------------------

    def run(self) -> World:
        """Runs to the end.

        Raises:
            Violation: something that must hold does not.
        """
        with self._small_pages():
            try:
                asyncio.set_event_loop(self.loop)
                self.loop.run_until_complete(self._main())
            except Exception as error:
                story = "\n".join(self.events)
                error.add_note(f"replay with SHOAL_SIMULATION_SEED={self.seed}\n{story}")
                raise
            finally:
                self._end()
        return self

    @contextlib.contextmanager
    def _small_pages(self) -> Iterator[None]:
        """Few documents make many messages; codecs are names."""
        with contextlib.ExitStack() as stack:
            for name, value in (
                ("deploy.shards._PAGE", 5),
                ("deploy.copying._DOCUMENTS", 4),
                ("deploy.generations._CLOSE", 2),
                ("deploy.training.train", lambda sample, _: SimpleNamespace(name="codec")),
                ("deploy.training.write_codec", self._write_codec),
                ("deploy.generations.drop_codecs", self._drop_codecs),
            ):
                stack.enter_context(mock.patch(name, value))
            handler = _Log(self)
            logging.getLogger("deploy").addHandler(handler)
            logging.getLogger("deploy").setLevel(logging.INFO)
            logging.getLogger("deploy").propagate = False
            stack.callback(logging.getLogger("deploy").removeHandler, handler)
            yield

    def _write_codec(self, codec: object, collection: str, storage: object) -> None:
        self.effect("write codec")
        self.codecs.add((collection, codec.name))

    def _drop_codecs(self, kept: set[str], storage: object) -> None:
        self.codecs = {codec for codec in self.codecs if codec[0] in kept}

    def _end(self) -> None:
        owners = [handle.server.owner for handle in self.servers.values()]
        if self.controller is not None:
            owners.append(self.controller.owner)
        for owner in owners:
            owner.kill()
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        self.loop.run_until_complete(_all(tasks))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        asyncio.set_event_loop(None)
        self.loop.close()

    async def _main(self) -> None:
        self.catalog.put(SERVING_KEY, self._first().to_message().SerializeToString(), 0)
        supervisor = asyncio.create_task(self._supervise())
        users = [User(self, number) for number in range(3)]
        works = [supervisor, asyncio.create_task(self._watch())]
        await self._until(lambda: self._problem() is None, 300.0, "the first shards serve")
        for user in users:
            await user.fill(self.rules.documents // 3)
        works += [asyncio.create_task(user.write_on()) for user in users]
        self.counting = True
        self.faulty = bool(self.rules.faulty_s)
        if self.faulty:
            works += self._start_faults()
            await asyncio.sleep(self.rules.faulty_s)
            self.faulty = False
            self.note("calm")
        else:
            await self._wish(router_pb2.RebuildCollectionRequest(name=NAME, shards=3))
        await self._until(lambda: self._problem() is None, SETTLED_S, "everything is well")
        await self._check_end(users)
        for work in works:
            work.cancel()
        await _all(works)

    def _first(self) -> Record:
        colbert = self.rules.kind is Kind.COLBERT
        wish = Wish(
            name=NAME,
            kind=self.rules.kind,
            encoder="none",
            dim=DIM,
            shards=self.rules.shards,
            code_bytes=4 if colbert else 0,
            train_at=120_000 if colbert else 0,
        )
        bounds = Bounds(max_dim=64, max_shards=8, default_shards=2)
        return new_record(settle(check_wish(wish, bounds), None), UUID)

    async def _until(self, condition: Callable[[], bool], within_s: float, what: str) -> None:
        end_s = self.loop.time() + within_s
        while not condition():
            self._raise()
            if self.loop.time() > end_s:
                why = self._problem() or ""
                raise Violation(f"after {within_s} s it is not so that {what}: {why}")
            await asyncio.sleep(0.1)
        self._raise()

    def _raise(self) -> None:
        if self.violation is not None:
            raise self.violation
        for error in self.loop.failures:
            raise Violation(f"an error that nobody handled: {error!r}") from error

    @property
    def simulated_s(self) -> float:
        """Seconds of virtual time so far."""
        return self.loop.time() - BEGIN_S

    # --- what is noted ------------------------------------------------------

    def note(self, what: str) -> None:
        """An event, for whoever reads a failure."""
        line = f"{self.simulated_s:9.3f} {what}"
        self.digest = zlib.crc32(line.encode(), self.digest)
        self.events.append(line)

    def broken(self, why: str) -> None:
        """Notes the first thing that does not hold."""
        self.note(f"VIOLATION {why}")
        self.violation = self.violation or Violation(why)

    def effect(self, what: str, server: SimServer | None = None) -> bool:
        """Something outside of the controller has changed at its will.

        Returns:
            Whether the controller dies of it.
        """
        if not self.counting:
            return False
        self.effects += 1
        self.note(f"#{self.effects} {what}")
        if self.crash is None or self.effects != self.crash.effect:
            return False
        if self.crash.victim == "controller":
            self.kill_controller()
            return True
        for handle in list(self.servers.values()):
            if handle.name == self.crash.victim:
                self.kill_server(handle)
        return False

    def chance(self, probability: float) -> bool:
        """Whether it happens."""
        return self.dice.random() < probability

    @property
    def delay_s(self) -> float:
        """Of a message, in the mean."""
        return self.rules.delay_s if self.faulty else 0.002

    def hits(self, fault: str, probability: float) -> bool:
        """Whether a fault happens; none does any more when the world is calm."""
        hit = self.faulty and self.chance(probability)
        if hit:
            self.faults[fault] += 1
            self.note(f"fault {fault}")
        return hit

    async def pause(self, mean_s: float) -> None:
        """Takes some time."""
        await asyncio.sleep(self.dice.expovariate(1 / mean_s))

    # --- processes ----------------------------------------------------------

    async def _supervise(self) -> None:
        while True:
            await self.start_controller()
            await self.pause(self.rules.start_s)

    async def start_controller(self) -> None:
        """One life of the controller; returns when it has ended."""
        owner = Owner(self.loop, "controller")
        store = Store(self.catalog)
        reconciler = Reconciler(self.settings, store, SimLauncher(self), SimCalls(self.network))
        generations = Generations(reconciler, mock.Mock())
        administration = Administration(reconciler, generations, Limits())
        life = Running(owner, store, reconciler, generations, administration)
        self.controller = life
        self.note("controller starts")

        async def live() -> None:
            await reconciler.recover()
            await store.announce("controller")
            life.ready = True
            await together(reconciler.run(), generations.run())

        task = owner.run(live())
        await asyncio.wait({task})
        if owner.dead:
            return
        owner.kill()
        error = None if task.cancelled() else task.exception()
        self.note(f"controller ends: {error!r}")
        if life.ready and not isinstance(error, Superseded):
            self.broken(f"the controller broke: {error!r}")
            raise self.violation from error

    def kill_controller(self) -> None:
        """kill -9."""
        if self.controller is not None and not self.controller.owner.dead:
            self.note("kill controller")
            self.controller.owner.kill()

    def kill_server(self, handle: SimHandle) -> None:
        """kill -9."""
        if self.servers.pop(handle.address, None) is None:
            return
        self.note(f"kill {handle.name}.{handle.incarnation}")
        handle.server.owner.kill()
        handle.gone.set()
        self.network.died(handle.address)

    def start_server(self, spec: StartSpec) -> SimHandle:
        """A server that listens."""
        address = f"{spec.name}.{spec.incarnation}:{self.dice.randrange(10_000)}"
        server = SimServer(self, Owner(self.loop, address))
        handle = SimHandle(self, spec.name, Role.SERVER, spec.incarnation, address, server)
        self.servers[address] = handle
        return handle

    def _start_faults(self) -> list[asyncio.Task[None]]:
        works = (
            self._now_and_then(self.rules.server_kill_s, self._kill_some_server),
            self._now_and_then(self.rules.server_hang_s, self._hang_some_server),
            self._now_and_then(self.rules.controller_kill_s, self._kill_the_controller),
            self._now_and_then(self.rules.wish_s, self._wish_something),
        )
        return [asyncio.create_task(work) for work in works]

    async def _now_and_then(self, mean_s: float, what: Callable[[], None]) -> None:
        while mean_s and self.faulty:
            await self.pause(mean_s)
            if self.faulty:
                what()

    def _kill_some_server(self) -> None:
        if self.servers:
            self.faults["kill server"] += 1
            self.kill_server(self.dice.choice(list(self.servers.values())))

    def _hang_some_server(self) -> None:
        if self.servers:
            handle = self.dice.choice(list(self.servers.values()))
            handle.hangs_until_s = self.loop.time() + self.dice.expovariate(1 / 10.0)
            self.faults["hang server"] += 1
            self.note(f"hangs {handle.name} until {handle.hangs_until_s - BEGIN_S:.3f}")

    def _kill_the_controller(self) -> None:
        self.faults["kill controller"] += 1
        self.kill_controller()

    # --- what operators ask for ---------------------------------------------

    def _wish_something(self) -> None:
        life = self.controller
        if life is None or life.owner.dead or not life.ready:
            return
        if self.rules.rollbacks and self.chance(0.4):
            work: Coroutine[None, None, object] = life.administration.rollback(NAME)
        else:
            shards = self.dice.randint(1, 4)
            code_bytes = 4 if self.rules.kind is Kind.COLBERT and self.chance(0.3) else 0
            request = router_pb2.RebuildCollectionRequest(
                name=NAME, shards=shards, code_bytes=code_bytes
            )
            work = life.administration.rebuild(request)
        self.note(f"wish {work.__name__}")
        task = life.owner.run(_quietly(work))
        if self.hits("caller leaves", self.rules.leave):
            self.loop.call_later(
                self.dice.expovariate(1 / self.dice.choice([0.003, 0.05])), task.cancel
            )

    async def _wish(self, request: router_pb2.RebuildCollectionRequest) -> None:
        """Asks until it is recorded that there is to be such a generation."""

        def recorded() -> bool:
            return any(
                record.collection.generation > 1 for record in self.records().values()
            ) or any(key.startswith("drops/") for key in self.catalog.values)

        while not recorded():
            life = self.controller
            if life is not None and life.ready and not life.owner.dead:
                await asyncio.wait({life.owner.run(_quietly(life.administration.rebuild(request)))})
            await asyncio.sleep(0.1)

    # --- oracles --------------------------------------------------------------

    def records(self) -> dict[str, Record]:
        """The catalog's generations."""
        found = {
            key.removeprefix("collections/"): record_from_bytes(value)
            for key, (_, value) in self.catalog.values.items()
            if key.startswith("collections/")
        }
        serving = found.get(NAME)
        return {
            name: record
            for name, record in found.items()
            # A flip that found no room may leave what serves under its old name as well.
            if name == NAME
            or serving is None
            or record.collection.generation != serving.collection.generation
        }

    def serving(self) -> Record | None:
        """What the catalog says serves."""
        return self.records().get(NAME)

    def content(self, record: Record) -> dict[str, bytes]:
        """Digests of all that is durable in a generation."""
        found: dict[str, bytes] = {}
        count = len(record.collection.shards)
        for number, ref in enumerate(record.collection.refs()):
            for key, stored in self.disk.get(ref, DiskShard()).documents.items():
                if shard_of(key.encode(), count) != number:
                    self.broken(f"{key} lies in shard {number} of {count}")
                found[key] = stored.digest
        return found

    def put_in_catalog(self, key: str, before: bytes | None, after: bytes) -> None:
        """Checks a catalog write."""
        if key == SERVING_KEY and before is not None:
            self._check_flip(record_from_bytes(before), record_from_bytes(after))
        if key == TOPOLOGY_KEY:
            self._check_topology(controller_pb2.Topology.FromString(after))

    def _check_flip(self, old: Record, new: Record) -> None:
        one, other = old.collection, new.collection
        if new.collection.phase is not GenerationPhase.SERVING:
            self.broken("what serves has another phase")
        if one.generation == other.generation:
            return
        self.flips += 1
        self.note(f"flip {one.generation} -> {other.generation}")
        before, after = self.content(old), self.content(new)
        self.frozen[one.generation] = before
        self.went_back = self.went_back or other.generation in self.frozen
        expected = self.frozen.get(other.generation, before)
        if after != expected:
            lost, extra = _difference(expected, after)
            self.broken(
                f"generation {other.generation} does not hold what it should: "
                f"lacks {lost}, has too much {extra}"
            )

    def _check_topology(self, topology: controller_pb2.Topology) -> None:
        serving = self.serving()
        for collection in topology.collections:
            if serving is None:
                continue
            number = serving.collection.generation
            # For a moment after a flip it may still be the one before.
            if collection.generation != number and collection.generation not in self.frozen:
                self.broken(f"published is generation {collection.generation}, {number} serves")

    def committed(self, ref: ShardRef, from_builder: bool) -> None:
        """Checks a durable write."""
        records = self.records()
        serving = records.get(NAME)
        own = next((r for r in records.values() if ref in r.collection.refs()), None)
        if serving is None or own is None:
            return
        serves = serving.collection.generation == ref.generation
        if from_builder and (serves or ref.generation in self.frozen):
            self.broken(f"the builder wrote to generation {ref.generation}, which has served")
        if not from_builder and not serves:
            self.broken(f"a user wrote to generation {ref.generation}, which does not serve")

    def dropped(self, ref: ShardRef) -> None:
        """Checks that data may go."""
        kept = any(ref in record.collection.refs() for record in self.records().values())
        if kept and f"drops/{ref.collection}-{ref.generation}" not in self.catalog.values:
            self.broken(f"the data of {ref} was deleted")

    async def _watch(self) -> None:
        """Checks that nobody stays closed."""
        closed_s = 0.0
        while True:
            await asyncio.sleep(0.5)
            life = self.controller
            well = life is not None and not life.owner.dead and life.ready and not self.faulty
            closed = well and any(writers != USERS for writers in self._writers_of_serving())
            closed_s = closed_s + 0.5 if closed else 0.0
            flips = life is not None and life.generations.turns[NAME].locked()
            if closed_s > (FLIP_S if flips else CLOSED_S):
                self.broken(f"shards refuse users for {closed_s} s (flipping: {flips})")

    def _writers_of_serving(self) -> list[int]:
        serving = self.serving()
        if serving is None:
            return []
        found = []
        for number, placement in enumerate(serving.collection.shards):
            for handle in self.servers.values():
                shard = handle.server.entries.get(serving.collection.ref(number))
                if shard is not None and not shard.opening and shard.epoch == placement.epoch:
                    found.append(shard.writers)
        return found

    def _problem(self) -> str | None:
        """What is not as it must come to be; None if all is well."""
        life, serving = self.controller, self.serving()
        if life is None or life.owner.dead or not life.ready:
            return "the controller is down"
        if serving is None:
            return "nothing serves"
        problem = self._unfinished(life, serving)
        if problem is not None:
            return problem
        writers = self._writers_of_serving()
        if writers != [USERS] * len(serving.collection.shards):
            return f"writers of what serves: {writers}"
        if not life.administration._serves(serving):
            return "it is not published"
        return self._leftovers()

    def _unfinished(self, life: Running, serving: Record) -> str | None:
        records = self.records()
        for name, record in records.items():
            if record.collection.phase in (GenerationPhase.TRAINING, GenerationPhase.COPYING):
                return f"{name} is being built: {life.generations.details.get(name, '')}"
        if any(key.startswith("drops/") for key in self.catalog.values):
            return "drops are left"
        if len(records) > 1 + bool(serving.collection.previous):
            return f"too many generations are kept: {sorted(records)}"
        return None

    async def _check_end(self, users: list[User]) -> None:
        for user in users:
            await user.finish()
        await self._until(lambda: self._problem() is None, SETTLED_S, "everything is well")
        serving = self.serving()
        assert serving is not None
        content = self.content(serving)
        for user in users:
            user.check(content)
        self._raise()

    def _leftovers(self) -> str | None:
        """What is left of generations that are gone; an OpenShard that comes late revives some."""
        reviving = ("late OpenShard", "repeated OpenShard", "hang server")
        if any(self.faults[fault] for fault in reviving):
            return None
        known = {ref for record in self.records().values() for ref in record.collection.refs()}
        held = {ref for handle in self.servers.values() for ref in handle.server.entries}
        gone = (held | set(self.disk)) - known
        return f"left of generations that are gone: {gone}" if gone else None


def _difference(expected: dict[str, bytes], found: dict[str, bytes]) -> tuple[list[str], list[str]]:
    lost = sorted(key for key in expected if found.get(key) != expected[key])
    return lost, sorted(key for key in found if key not in expected)


async def _quietly(work: Coroutine[None, None, object]) -> None:
    with contextlib.suppress(ShoalError):
        await work


async def _all(tasks: object) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)
