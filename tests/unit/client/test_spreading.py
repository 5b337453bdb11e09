"""Which router is called, what is repeated, and how much, under a virtual clock."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shoal.client import operations
from shoal.client.operations import Call, LimitsCache
from shoal.client.spreading import (
    ASK_FIRST_S,
    ASK_LAST_S,
    LOOK_AGAIN_S,
    LOOK_S,
    RETRY_PAUSE_S,
    Spreading,
)
from shoal.errors import (
    ClusterUnreachable,
    EmptyText,
    NotReady,
    Overloaded,
    RouterDraining,
    ShardUnavailable,
    ShoalError,
)
from shoal.rpc.router.v1 import router_pb2

LOST = ClusterUnreachable("nothing answers")
NAMES = [f"r{number}:1" for number in range(4)]
QUERY = router_pb2.SearchRequest(collection="papers", query=router_pb2.Query(text="words"))


@dataclass
class World:
    """Routers that live or die, a client's `Spreading`, and a clock that is moved by hand.

    Those that are cut off serve, but not this client.
    """

    given: tuple[str, ...] = ("r0:1",)
    listed: list[str] = field(default_factory=lambda: list(NAMES[:3]))
    now: float = 0.0

    def __post_init__(self) -> None:
        self.spreading = Spreading(self.given)
        self.dead: set[str] = set()
        self.cut_off: set[str] = set()
        self.draining: set[str] = set()
        self.calls: dict[str, int] = {}
        self.asked: list[tuple[float, str]] = []

    def look(self) -> None:
        """Carries questions to the routers, until nothing more is to be asked."""
        while asks := self.spreading.asks(self.now):
            for address in asks:
                self.asked.append((self.now, address))
                if address in self.dead | self.cut_off:
                    self.spreading.silent(address, self.now)
                    continue
                serving = [each for each in self.listed if each not in self.dead | self.draining]
                self.spreading.told(address, self.now, serving, address in self.draining)

    def attempt(self, error: ShoalError | None = None) -> str:
        """One call, in no time; returns where it was made."""
        return self._try(error)[0]

    def search(self, error: ShoalError | None = None) -> bool:
        """One question as the drivers ask it, in no time; False if it failed."""
        operation = operations.search(LimitsCache(), QUERY)
        step: Any = next(operation)
        try:
            while True:
                if isinstance(step, Call):
                    _, failure = self._try(error)
                else:
                    pause = self.spreading.retry_pause_s(step.error, self.now, 10.0)
                    failure = step.error if pause is None else None
                if failure is None:
                    step = operation.send(router_pb2.SearchResponse())
                else:
                    step = operation.throw(failure)
        except StopIteration:
            return True
        except ShoalError:
            return False

    def _try(self, error: ShoalError | None) -> tuple[str, ShoalError | None]:
        """One attempt; a dead router does not answer, whatever the error is to be."""
        address = self.spreading.begin(self.now)
        self.calls[address] = self.calls.get(address, 0) + 1
        failure = LOST if address in self.dead | self.cut_off else error
        self.spreading.end(address, self.now, failure, address in self.draining)
        self.look()
        return address, failure

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.look()


def learnt() -> World:
    world = World()
    world.attempt()
    world.calls.clear()
    return world


# --- which router ---------------------------------------------------------------


def test_the_others_are_learned_with_the_first_call_and_called_in_turn() -> None:
    world = World()
    assert world.attempt() == "r0:1"
    called = [world.attempt() for _ in range(6)]
    assert sorted(called[:3]) == NAMES[:3]
    assert called[3:] == called[:3]


def test_the_one_with_the_fewest_calls_under_way_is_called() -> None:
    world = learnt()
    slow = {world.spreading.begin(0.0), world.spreading.begin(0.0)}
    (free,) = set(NAMES[:3]) - slow
    assert {world.attempt() for _ in range(5)} == {free}


def test_several_given_ones_are_spread_over_before_any_answers() -> None:
    spreading = Spreading(["a:1", "b:1"])
    assert {spreading.begin(0.0), spreading.begin(0.0)} == {"a:1", "b:1"}


def test_a_learned_address_that_leads_nowhere_is_never_called() -> None:
    world = World(given=("public:1",), listed=["inside:1", "inside:2"])
    world.cut_off = {"inside:1", "inside:2"}
    for _ in range(200):
        world.attempt()
        world.pass_time(0.1)
    world.dead = {"public:1"}
    for _ in range(200):
        world.attempt()
        world.pass_time(0.1)
    assert world.calls == {"public:1": 400}
    assert sum(address == "public:1" for _, address in world.asked) < 20.0 / LOOK_S + 12


def test_a_given_name_of_a_learned_router_is_kept_for_later() -> None:
    world = World(given=("localhost:1",), listed=["r0:1", "r1:1"])
    world.attempt()
    assert {world.attempt() for _ in range(10)} == {"r0:1", "r1:1"}
    world.dead = {"r0:1", "r1:1"}
    world.attempt()
    world.attempt()
    assert {world.attempt() for _ in range(10)} == {"localhost:1"}


def test_a_dead_router_is_called_again_once_it_answered_a_question() -> None:
    world = learnt()
    world.dead = {"r1:1"}
    while "r1:1" not in world.calls:
        world.attempt()
    assert "r1:1" not in {world.attempt() for _ in range(20)}
    world.dead.clear()
    world.pass_time(ASK_LAST_S)
    world.pass_time(LOOK_S)
    assert {world.attempt() for _ in range(9)} == set(NAMES[:3])


def test_a_draining_router_is_left_but_answers_while_it_is_alone() -> None:
    world = learnt()
    world.draining = {"r1:1"}
    while "r1:1" not in world.calls:
        world.attempt()
    assert {world.attempt() for _ in range(9)} == {"r0:1", "r2:1"}
    world.draining = set(NAMES[:3])
    for _ in range(9):
        world.attempt()
    assert {world.attempt() for _ in range(9)} <= set(NAMES[:3])


def test_a_router_that_began_anew_at_its_address_is_called_again() -> None:
    world = World(listed=["r0:1"])
    world.draining = {"r0:1"}
    assert world.attempt() == "r0:1"
    world.draining.clear()
    world.listed = list(NAMES[:2])
    world.pass_time(LOOK_S)
    assert {world.attempt() for _ in range(9)} == set(NAMES[:2])


@pytest.mark.parametrize(
    "refusal", [Overloaded("busy", retry_after_s=1.0), NotReady("starts", retry_after_s=1.0)]
)
def test_one_that_refuses_is_left_alone_for_as_long_as_it_asks(refusal: ShoalError) -> None:
    world = learnt()
    refused = world.attempt(refusal)
    assert refused not in {world.attempt() for _ in range(20)}
    world.pass_time(1.0)
    assert refused in {world.attempt() for _ in range(9)}


def test_routers_that_are_no_more_are_let_go_once_their_calls_have_ended() -> None:
    world = learnt()
    held = {world.spreading.begin(0.0) for _ in range(3)}
    assert held == set(NAMES[:3])
    world.listed = ["r0:1"]
    world.pass_time(LOOK_S)
    assert world.spreading.gone() == []
    world.spreading.end("r1:1", world.now, None)
    assert world.spreading.gone() == ["r1:1"]
    assert world.spreading.addresses == ["r0:1", "r2:1"]


def test_a_router_that_names_none_changes_nothing() -> None:
    world = learnt()
    world.listed = []
    world.pass_time(LOOK_S)
    assert set(world.spreading.addresses) == set(NAMES[:3])


def test_one_that_drained_and_began_anew_unseen_is_called_again() -> None:
    world = learnt()
    world.draining = {"r1:1"}
    while "r1:1" not in world.calls:
        world.attempt()
    world.draining.clear()
    world.pass_time(ASK_LAST_S)
    assert "r1:1" in {world.attempt() for _ in range(9)}


def test_one_that_was_met_is_tried_before_those_that_never_were() -> None:
    world = World(given=("old:1",), listed=["r0:1", "inside:1"])
    world.cut_off = {"inside:1"}
    world.attempt()
    world.dead = {"old:1", "r0:1"}
    for _ in range(9):
        world.attempt()
    assert set(world.calls) == {"old:1", "r0:1"}


# --- questions -------------------------------------------------------------------


def test_a_client_in_peace_asks_one_router_every_few_seconds() -> None:
    world = learnt()
    world.asked.clear()
    for _ in range(600):
        world.attempt()
        world.pass_time(0.1)
    assert len(world.asked) == pytest.approx(60.0 / LOOK_S, abs=1)
    assert {address for _, address in world.asked} == set(NAMES[:3])


def test_an_idle_client_asks_nothing() -> None:
    spreading = Spreading(["a:1"])
    spreading.end(spreading.begin(0.0), 0.0, None)
    assert spreading.asks(0.0) == ["a:1"]
    spreading.told("a:1", 0.0, ["a:1"], False)
    assert spreading.asks(LOOK_S - 0.1) == []


def test_the_dead_are_asked_less_and_less_often() -> None:
    world = learnt()
    world.dead = {"r1:1", "r2:1"}
    for _ in range(600):
        world.attempt()
        world.pass_time(0.1)
    world.listed = list(NAMES[:1])
    asked = [at for at, address in world.asked if address == "r1:1"]
    assert len(asked) <= 60.0 / ASK_LAST_S + 6


def test_many_calls_that_fail_together_are_one_sign() -> None:
    world = learnt()
    held = [world.spreading.begin(0.0) for _ in range(60)]
    world.dead = {"r1:1"}
    for address in held:
        world.spreading.end(address, 0.0, LOST if address in world.dead else None)
    assert "r1:1" in world.spreading.asks(ASK_FIRST_S)


def test_one_that_came_back_and_dies_again_is_asked_soon_again() -> None:
    world = learnt()
    world.dead = {"r0:1"}
    for _ in range(300):
        world.attempt()
        world.pass_time(0.1)
    world.dead.clear()
    world.pass_time(ASK_LAST_S)
    world.pass_time(LOOK_S)
    world.calls.clear()
    world.dead = {"r0:1"}
    while "r0:1" not in world.calls:
        world.attempt()
    world.asked.clear()
    world.pass_time(ASK_FIRST_S)
    assert "r0:1" in {address for _, address in world.asked}


def test_a_question_is_asked_once_until_it_is_answered() -> None:
    spreading = Spreading(["a:1"])
    spreading.end(spreading.begin(0.0), 0.0, LOST)
    assert spreading.asks(1.0) == ["a:1"]
    assert spreading.asks(100.0) == []
    spreading.silent("a:1", 100.0)
    assert spreading.asks(200.0) == ["a:1"]


@pytest.mark.parametrize("sign", ["dead", "draining"])
def test_a_router_that_goes_has_the_others_asked_soon(sign: str) -> None:
    world = learnt()
    world.pass_time(LOOK_S - 1.0)
    world.asked.clear()
    getattr(world, sign).add("r1:1")
    while "r1:1" not in world.calls:
        world.attempt()
    world.pass_time(LOOK_AGAIN_S)
    assert {address for _, address in world.asked} - {"r1:1"}


# --- retries ----------------------------------------------------------------------


def test_what_another_router_may_do_better_is_repeated_there_at_once() -> None:
    for error in (LOST, NotReady("starts", retry_after_s=1.0), RouterDraining("ends")):
        world = learnt()
        first = world.attempt(error)
        assert world.spreading.retry_pause_s(error, 0.0, left_s=10.0) == 0.0
        assert world.attempt() != first


def test_the_only_router_is_given_a_moment() -> None:
    spreading = Spreading(["a:1"])
    spreading.end(spreading.begin(0.0), 0.0, LOST)
    assert spreading.retry_pause_s(LOST, 0.0, 10.0) == RETRY_PAUSE_S


def test_a_hint_is_kept_to_where_every_router_would_fail() -> None:
    world = learnt()
    error = ShardUnavailable("gone", retry_after_s=0.5)
    world.attempt(error)
    assert world.spreading.retry_pause_s(error, 0.0, 10.0) == 0.5


def test_there_is_no_retry_past_the_deadline_and_none_is_paid_for() -> None:
    world = learnt()
    late = ShardUnavailable("gone", retry_after_s=5.0)
    assert {world.spreading.retry_pause_s(late, 0.0, 5.0) for _ in range(50)} == {None}
    assert world.spreading.retry_pause_s(late, 0.0, 5.1) == 5.0


@pytest.mark.parametrize("warm_s", [0.0, 7.0, 90.0])
@pytest.mark.parametrize("rate", [2, 10, 100])
@pytest.mark.parametrize("dies", [True, False])
def test_when_everything_fails_there_are_few_retries(rate: int, warm_s: float, dies: bool) -> None:
    """At most 1.1 attempts for each request in 30 s, dead routers or failing shards."""
    world = World()
    for _ in range(int(warm_s * rate)):
        assert world.search()
        world.pass_time(1 / rate)
    world.calls.clear()
    world.dead = set(NAMES) if dies else set()
    requests = 30 * rate
    for _ in range(requests):
        assert not world.search(ShardUnavailable("every shard is gone"))
        world.pass_time(1 / rate)
    assert sum(world.calls.values()) <= 1.1 * requests


def test_a_client_recovers_with_its_cluster() -> None:
    world = World()
    world.search()
    world.dead = set(NAMES)
    for _ in range(3000):
        world.search()
        world.pass_time(0.1)
    world.dead.clear()
    world.pass_time(ASK_LAST_S)
    world.calls.clear()
    assert all(world.search() for _ in range(9))
    assert len(world.calls) == 3


@pytest.mark.parametrize("under_way", [1, 8, 32])
def test_all_calls_under_way_at_a_router_that_dies_are_answered(under_way: int) -> None:
    """After 10 s of twice that load a second, each fails once and is repeated once."""
    world = World(listed=list(NAMES[:2]))
    for _ in range(20 * under_way):
        assert world.search()
        world.pass_time(0.5 / under_way)
    held = [world.spreading.begin(world.now) for _ in range(under_way)]
    world.dead = {held[0]}
    for address in held:
        lost = address in world.dead
        world.spreading.end(address, world.now, LOST if lost else None)
        if lost:
            assert world.spreading.retry_pause_s(LOST, world.now, 10.0) == 0.0
            assert world.attempt() not in world.dead


def test_failures_now_and_then_are_all_repeated() -> None:
    world = World()
    for number in range(2000):
        error = ShardUnavailable("now and then") if number % 25 == 0 else None
        world.attempt(error)
        if error is not None:
            assert world.spreading.retry_pause_s(error, world.now, 10.0) is not None
        world.pass_time(0.01)


# --- whatever happens ----------------------------------------------------------------


class AnyHistory(RuleBasedStateMachine):
    """Random histories: calls that overlap, routers that die, drain, come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.held: list[str] = []

    @property
    def spreading(self) -> Spreading:
        return self.world.spreading

    @rule()
    def begin(self) -> None:
        address = self.spreading.begin(self.world.now)
        self.held.append(address)

    @precondition(lambda self: self.held)
    @rule(
        place=st.integers(0, 99),
        error=st.sampled_from(
            [None, None, NotReady("x"), Overloaded("x"), RouterDraining("x"), EmptyText("x")]
        ),
    )
    def end(self, place: int, error: ShoalError | None) -> None:
        address = self.held.pop(place % len(self.held))
        dead = address in self.world.dead
        draining = address in self.world.draining and not dead
        self.spreading.end(address, self.world.now, LOST if dead else error, draining)

    @rule(seconds=st.sampled_from([0.01, 0.3, 2.0, 20.0]))
    def wait(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    @rule(name=st.sampled_from(NAMES))
    def die_or_return(self, name: str) -> None:
        self.world.dead ^= {name}

    @rule(name=st.sampled_from(NAMES))
    def drain_or_stay(self, name: str) -> None:
        self.world.draining ^= {name}

    @rule(listed=st.lists(st.sampled_from(NAMES), unique=True))
    def change(self, listed: list[str]) -> None:
        self.world.listed = listed

    @rule(error=st.sampled_from([LOST, ShardUnavailable("x", retry_after_s=0.7)]))
    def retry(self, error: ShoalError) -> None:
        pause = self.spreading.retry_pause_s(error, self.world.now, 1.0)
        assert pause is None or 0.0 <= pause < 1.0

    @invariant()
    def calls_have_a_router(self) -> None:
        assert set(self.held) <= set(self.spreading.addresses)
        assert "r0:1" in self.spreading.addresses, "a given one is never forgotten"
        assert not set(self.spreading.gone()) & set(self.spreading.addresses)

    def teardown(self) -> None:
        """In peace every router that serves is called, and no other."""
        for address in self.held:
            self.spreading.end(address, self.world.now, None)
        self.world.dead.clear()
        self.world.draining.clear()
        self.world.listed = list(NAMES)
        for _ in range(3):
            # A question that was on its way when a call failed may come late.
            self.world.pass_time(max(ASK_LAST_S, LOOK_S) + 1.0)
        assert {self.world.attempt() for _ in range(8)} == set(NAMES)


AnyHistory.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyHistory = AnyHistory.TestCase
