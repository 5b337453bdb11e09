"""Runs the batch planner: texts in, vectors out, the model on a thread of its own."""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from encoder_service import metrics
from encoder_service.backends.port import Backend, ModelInput
from encoder_service.core.batching import (
    Action,
    Arrived,
    BatchDone,
    BatchPlanner,
    Drop,
    DropReason,
    Event,
    Item,
    Lane,
    Left,
    ModelFree,
    PlannerOptions,
    Refuse,
    Run,
    Tokenized,
    padded_length,
)
from shoal.errors import DeadlineExceeded, EncoderDrift, Overloaded, ShoalError
from shoal.types import Float32Matrix

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Encoded:
    """One text's outcome.

    Attributes:
        rows: float32[rows, dim], not normalised; None if it failed.
        error: why it failed.
        queue_ns: its wait.
        batch: number of the batch that it was in; 0 if it was in none.
        model_ns: how long that batch ran.
    """

    rows: Float32Matrix | None
    error: ShoalError | None
    queue_ns: int
    batch: int = 0
    model_ns: int = 0


@dataclass(slots=True)
class _Waiting:
    text: ModelInput
    backend: Backend
    since_ns: int
    done: asyncio.Future[Encoded]


class Admission:
    """A request that the worker accepted. Leaving the block drops what still waits."""

    def __init__(self, worker: "EncodeWorker", request: int, lane: Lane) -> None:
        self._worker = worker
        self._request = request
        self._lane = lane

    def __enter__(self) -> "Admission":
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.leave(self._request)

    async def encode(
        self,
        model: tuple[str, Backend, int],
        texts: Sequence[ModelInput],
        deadlines_ns: Sequence[int | None],
    ) -> list[Encoded]:
        """Encodes the request's texts; called once.

        Args:
            model: (fingerprint, engine, the card's longest text).
            texts: as the model reads them.
            deadlines_ns: of each, on `time.monotonic_ns`; None is never.

        Returns:
            An outcome for each text.
        """
        return await self._worker.submit(self._request, self._lane, model, texts, deadlines_ns)


class EncodeWorker:
    """One model thread behind one planner; used from one event loop."""

    def __init__(self, options: PlannerOptions) -> None:
        self._planner = BatchPlanner(options)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encoder-model")
        self._waiting: dict[int, _Waiting] = {}
        self._ids = itertools.count(1)
        self._batches = itertools.count(1)
        self._running: asyncio.Task[None] | None = None

    def waiting(self) -> int:
        """Texts that wait, in all lanes."""
        return sum(self._planner.waiting(lane) for lane in Lane)

    def admit(self, lane: Lane, estimated_tokens: int) -> Admission:
        """Makes room for a request before it is tokenised.

        Raises:
            Overloaded: the lane is full.
        """
        request = next(self._ids)
        for action in self._planner.handle(Arrived(request, lane, estimated_tokens)):
            if isinstance(action, Refuse):
                metrics.REFUSED.labels(lane.value).inc()
                raise Overloaded(
                    f"the encoder's {lane.value} lane is full; try again in "
                    f"{action.retry_after_s:.2f} s, or add encoders",
                    retry_after_s=action.retry_after_s,
                    lane=lane.value,
                )
        return Admission(self, request, lane)

    async def submit(
        self,
        request: int,
        lane: Lane,
        model: tuple[str, Backend, int],
        texts: Sequence[ModelInput],
        deadlines_ns: Sequence[int | None],
    ) -> list[Encoded]:
        """See `Admission.encode`."""
        fingerprint, backend, max_tokens = model
        loop, now_ns = asyncio.get_running_loop(), time.monotonic_ns()
        items: list[Item] = []
        futures: list[asyncio.Future[Encoded]] = []
        for text, deadline_ns in zip(texts, deadlines_ns, strict=True):
            item = Item(
                id=next(self._ids),
                request=request,
                lane=lane,
                model=fingerprint,
                tokens=text.attended,
                length=padded_length(len(text.ids), max_tokens),
                deadline_ns=deadline_ns,
            )
            done: asyncio.Future[Encoded] = loop.create_future()
            self._waiting[item.id] = _Waiting(text, backend, now_ns, done)
            items.append(item)
            futures.append(done)
        self._act(Tokenized(request, tuple(items)))
        if self._running is None and items:
            self._running = asyncio.create_task(self._run())
        return list(await asyncio.gather(*futures))

    def leave(self, request: int) -> None:
        """Nobody wants what still waits of a request."""
        self._act(Left(request))

    async def on_model_thread(self, call: Callable[[], Result]) -> Result:
        """Runs something between batches (a self-check)."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def close(self) -> None:
        """Ends the model thread after the batch under way."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)

    def _act(self, event: Event) -> Run | None:
        """Hands the planner an event; drops what it says, returns what to run."""
        run: Run | None = None
        actions: list[Action] = self._planner.handle(event)
        for action in actions:
            if isinstance(action, Drop):
                self._drop(action)
            elif isinstance(action, Run):
                run = action
        for lane in Lane:
            metrics.QUEUE_TEXTS.labels(lane.value).set(self._planner.waiting(lane))
        return run

    def _drop(self, drop: Drop) -> None:
        metrics.DROPPED.labels(drop.item.lane.value, drop.reason.value).inc()
        waiting = self._waiting.pop(drop.item.id)
        if waiting.done.done():
            return
        if drop.reason is DropReason.CALLER_LEFT:
            waiting.done.cancel()
            return
        queue_ns = time.monotonic_ns() - waiting.since_ns
        late = DeadlineExceeded(f"the text waited {queue_ns / 1e6:.0f} ms and was not encoded")
        waiting.done.set_result(Encoded(None, late, queue_ns))

    async def _run(self) -> None:
        try:
            while (run := self._act(ModelFree(time.monotonic_ns()))) is not None:
                await self._run_batch(run)
        finally:
            self._running = None

    async def _run_batch(self, run: Run) -> None:
        texts = [self._waiting.pop(item.id) for item in run.items]
        inputs, backend = [waiting.text for waiting in texts], texts[0].backend
        started_ns = time.monotonic_ns()
        error: ShoalError | Exception | None = None
        found: list[Float32Matrix] | None = None
        try:
            found = await self.on_model_thread(lambda: backend.encode(inputs, run.length))
        except Exception as raised:
            logger.exception("event=batch_failed texts=%d length=%d", len(inputs), run.length)
            error = raised
        elapsed_ns = time.monotonic_ns() - started_ns
        self._act(BatchDone(run.items[0].lane, run.length * len(inputs), elapsed_ns))
        _measure(run, elapsed_ns, [started_ns - text.since_ns for text in texts])
        batch = next(self._batches)
        for number, text in enumerate(texts):
            if text.done.done():
                continue
            if found is None:
                text.done.set_exception(error or RuntimeError("the model gave nothing"))
                continue
            queue_ns = started_ns - text.since_ns
            if np.isfinite(found[number]).all():
                done = Encoded(found[number], None, queue_ns, batch, elapsed_ns)
            else:
                broken = EncoderDrift("the model gave NaN or infinity; use another precision")
                done = Encoded(None, broken, queue_ns, batch, elapsed_ns)
            text.done.set_result(done)


def _measure(run: Run, elapsed_ns: int, waits_ns: list[int]) -> None:
    lane = run.items[0].lane.value
    tokens = sum(item.tokens for item in run.items)
    metrics.BATCH_TEXTS.labels(lane).observe(len(run.items))
    metrics.TOKENS.labels(lane).inc(tokens)
    metrics.PADDING.labels(lane).inc(run.length * len(run.items) - tokens)
    metrics.MODEL_SECONDS.labels(lane).observe(elapsed_ns / 1e9)
    for wait_ns in waits_ns:
        metrics.QUEUE_SECONDS.labels(lane).observe(wait_ns / 1e9)
