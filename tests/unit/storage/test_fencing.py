"""Writers that overtake each other at every step: acknowledged entries survive."""

import functools
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from shoal.errors import SupersededWriter
from shoal.storage import files, log_writer
from shoal.storage.directory import open_storage
from shoal.storage.ports import Log
from tests.unit.storage.damage import SHARD, crash

_STEPS = ("write_all", "fsync", "fsync_folder", "publish")


class Interruptions:
    """Runs something between two durable steps, as if this process had stopped there."""

    def __init__(self) -> None:
        self._real = {name: getattr(files, name) for name in _STEPS}
        self._countdown = -1
        self._action: Callable[[], None] = lambda: None
        for name in _STEPS:
            setattr(files, name, self._step(name))

    def arm(self, countdown: int, action: Callable[[], None]) -> None:
        self._countdown, self._action = countdown, action

    def _step(self, name: str) -> Callable[..., Any]:
        real = self._real[name]

        def step(*args: Any, **named: Any) -> Any:
            self._countdown -= 1
            if self._countdown == -1:
                self._action()
            # Nobody loses power here, so the disk need not be waited for.
            return None if name.startswith("fsync") else real(*args, **named)

        return step

    def restore(self) -> None:
        for name, real in self._real.items():
            setattr(files, name, real)


class FencingMachine(RuleBasedStateMachine):
    """Writers open, append, stop in the middle, wake up, die; the model is what was
    acknowledged, and what a later writer has read.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp(prefix="shoal-fencing-")
        self.logs = open_storage(self.folder).logs
        self.writers: list[tuple[int, Log]] = []
        self.epoch = 0
        self.kept: dict[int, bytes] = {}
        self.counter = 0
        self.file_bytes, log_writer.FILE_BYTES = log_writer.FILE_BYTES, 400
        self.interruptions = Interruptions()

    def _open(self) -> Log | None:
        self.epoch += 1
        epoch = self.epoch
        try:
            opened = self.logs.open(SHARD, epoch)
        except SupersededWriter:
            return None
        if epoch == self.epoch:
            self._adopt(opened)
        self.writers.append((epoch, opened))
        return opened

    def _adopt(self, opened: Log) -> None:
        """What the newest writer reads stays, and holds all that was kept."""
        found = {entry.sequence: entry.payload for entry in opened.entries(0)}
        assert list(found) == list(range(1, len(found) + 1))
        assert self.kept.items() <= found.items()
        self.kept = found

    def _append(self, opened: Log, count: int) -> None:
        self.counter += 1
        payloads = [b"%d.%d" % (self.counter, number) * 9 for number in range(count)]
        try:
            last = opened.append(payloads)
        except SupersededWriter:
            return
        for sequence, payload in enumerate(payloads, last - count + 1):
            assert sequence not in self.kept, "a sequence number was acknowledged twice"
            self.kept[sequence] = payload

    def _overtake(self, appends: int) -> Callable[[], None]:
        def act() -> None:
            opened = self._open()
            for _ in range(appends):
                if opened is not None:
                    self._append(opened, 2)

        return act

    @rule()
    def open(self) -> None:
        self._open()

    @rule(step=st.integers(0, 12), appends=st.integers(0, 3))
    def open_and_be_overtaken(self, step: int, appends: int) -> None:
        self.interruptions.arm(step, self._overtake(appends))
        self._open()
        self.interruptions.arm(-1, lambda: None)

    @rule(data=st.data(), step=st.integers(0, 6), count=st.integers(1, 3))
    def open_while_another_appends(self, data: st.DataObject, step: int, count: int) -> None:
        if self.writers:
            _, opened = data.draw(st.sampled_from(self.writers[-2:]))
            self.interruptions.arm(step, lambda: self._append(opened, count))
            self._open()
            self.interruptions.arm(-1, lambda: None)

    @rule(data=st.data(), count=st.integers(1, 3))
    def append(self, data: st.DataObject, count: int) -> None:
        if self.writers:
            _, opened = data.draw(st.sampled_from(self.writers))
            self._append(opened, count)

    @rule(
        data=st.data(), count=st.integers(1, 3), step=st.integers(0, 4), appends=st.integers(0, 3)
    )
    def append_and_be_overtaken(
        self, data: st.DataObject, count: int, step: int, appends: int
    ) -> None:
        if self.writers:
            _, opened = data.draw(st.sampled_from(self.writers[-2:]))
            self.interruptions.arm(step, self._overtake(appends))
            self._append(opened, count)
            self.interruptions.arm(-1, lambda: None)

    @rule(data=st.data())
    def mark(self, data: st.DataObject) -> None:
        if self.writers:
            _, opened = data.draw(st.sampled_from(self.writers))
            try:
                opened.idle()
            except SupersededWriter:
                return

    @rule(data=st.data(), gently=st.booleans())
    def leave(self, data: st.DataObject, gently: bool) -> None:
        if self.writers:
            writer = data.draw(st.sampled_from(self.writers))
            self.writers.remove(writer)
            if gently:
                writer[1].close()
            else:
                crash(writer[1])

    @invariant()
    def all_that_was_kept_can_be_read(self) -> None:
        found = {entry.sequence: entry.payload for entry in self.logs.read(SHARD).entries(0)}
        assert self.kept.items() <= found.items()

    def teardown(self) -> None:
        self.interruptions.restore()
        self._open()
        log_writer.FILE_BYTES = self.file_bytes
        for _, opened in self.writers:
            opened.close()
        files.remove_folder(self.folder)


@pytest.fixture
def machine() -> Iterator[FencingMachine]:
    machine = FencingMachine()
    yield machine
    machine.teardown()


@pytest.mark.parametrize("opening", [False, True])
@pytest.mark.parametrize("appends", [0, 1, 3])
def test_one_writer_is_overtaken_at_each_step(
    machine: FencingMachine, opening: bool, appends: int
) -> None:
    for step in range(10):
        old = machine._open()
        assert old is not None
        machine._append(old, 2)
        machine.interruptions.arm(step, machine._overtake(appends))
        if opening:
            machine._open()
        else:
            machine._append(old, 1)
        machine.interruptions.arm(-1, lambda: None)
        machine._open()
        machine.all_that_was_kept_can_be_read()


@pytest.mark.parametrize("count", [1, 3])
def test_the_old_writer_appends_at_each_step_of_a_takeover(
    machine: FencingMachine, count: int
) -> None:
    for step in range(10):
        old = machine._open()
        assert old is not None
        machine._append(old, 2)
        machine.interruptions.arm(step, functools.partial(machine._append, old, count))
        new = machine._open()
        machine.interruptions.arm(-1, lambda: None)
        assert new is not None
        machine._append(new, 1)
        machine._open()


def run(max_examples: int) -> None:
    run_state_machine_as_test(
        FencingMachine,
        settings=settings(max_examples=max_examples, stateful_step_count=20, deadline=None),
    )


def test_writers_that_overtake_each_other() -> None:
    run(5)


@pytest.mark.slow
def test_writers_that_overtake_each_other_many_times() -> None:
    run(50)
