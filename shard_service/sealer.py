"""Seals tails and merges segments in a background thread of low priority."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from shard_service import metrics
from shard_service.assembly import assemble
from shard_service.core.policy import Plan, Size, plan
from shard_service.core.state import ShardState
from shard_service.indexes import threads
from shard_service.segments import SegmentStore
from shard_service.settings import ShardSettings
from shoal.errors import ShoalError, StaleTopology

logger = logging.getLogger(__name__)


class Sealer:
    """Keeps the tail short and the segments few. Failures leave the shard as it was."""

    def __init__(
        self,
        state: ShardState,
        lock: threading.Lock,
        store: SegmentStore,
        drop_prefix: Callable[[int], None],
        publish: Callable[[], None],
        settings: ShardSettings,
    ) -> None:
        """Starts the thread.

        Args:
            state: the shard's documents.
            lock: held while the state changes.
            store: where segments go.
            drop_prefix: frees the log up to a sequence number.
            publish: called with the lock held after every change.
            settings: when to seal, and what to build.
        """
        self._state, self._lock, self._store = state, lock, store
        self._drop_prefix, self._publish, self._settings = drop_prefix, publish, settings
        self._building = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self.failure = ""
        name = f"shard-sealer-{store.ref.shard}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Lets the thread look whether there is something to do."""
        self._wake.set()

    def close(self) -> None:
        """Returns when nothing is being built any more."""
        self._closed = True
        self._wake.set()
        self._thread.join()
        with self._building:
            pass

    def optimize(self) -> None:
        """Merges everything into one segment with no dead rows.

        Raises:
            DiskFull: no room; the shard goes on as it was.
            StaleTopology: the shard is closed.
        """
        with self._building:
            if self._closed:
                raise StaleTopology("the shard is closed on this server")
            with self._lock:
                view, tail_rows = self._state.view(), self._state.tail_rows
            sources = view.sources[: len(view.segments)]
            whole = len(sources) == 1 and sources[0].live.whole and not tail_rows
            if (sources and not whole) or tail_rows:
                self._seal(Plan(tuple(range(len(sources))), with_tail=tail_rows > 0))

    def _run(self) -> None:
        threads.use_spare_core()
        while True:
            self._wake.wait()
            self._wake.clear()
            if self._closed:
                return
            try:
                self._seal_what_is_due()
                self.failure = ""
            except ShoalError as error:
                self.failure = f"sealing failed: {error.message}"
                logger.warning("event=seal_failed shard=%s: %s", self._store.ref, error.message)
            except Exception:
                self.failure = "sealing failed; the server's log says why"
                logger.exception("event=seal_failed shard=%s", self._store.ref)

    def _seal_what_is_due(self) -> None:
        while not self._closed:
            with self._building:
                due = self._due()
                if due is None:
                    return
                self._seal(due)

    def _due(self) -> Plan | None:
        with self._lock:
            view = self._state.view()
            rows, size = self._state.tail_rows, self._state.tail_bytes
        sizes = [
            Size(source.live.rows, source.live.live_rows)
            for source in view.sources[: len(view.segments)]
        ]
        full = rows >= self._settings.seal_passages or size >= self._settings.seal_bytes
        return plan(sizes, rows, tail_full=full)

    def _seal(self, due: Plan) -> None:
        started = time.monotonic()
        with self._lock:
            segments = self._state.view().segments
            chosen = [segments[number] for number in due.segments]
            frozen = self._state.freeze(chosen, with_tail=due.with_tail)
        entry, origins = assemble(self._store, frozen)
        fresh = None if entry is None else self._store.load(entry)
        kept = [segment for segment in segments if segment not in chosen]
        at = min(due.segments, default=len(segments))
        position = frozen.position if due.with_tail else self._store.position
        with self._lock:
            # Masks may know more than the position says: replaying it again changes nothing.
            dead = self._state.dead_after(frozen, fresh, origins)
        self._store.publish(position, [s.name for s in kept], at, entry, dead)
        with self._lock:
            self._state.install(frozen, fresh, origins)
            self._publish()
        self._drop_prefix(position)
        self._store.clean()
        metrics.SEALED.inc()
        metrics.SEAL_SECONDS.observe(time.monotonic() - started)
        logger.info(
            "event=sealed shard=%s segment=%s rows=%d index=%s recall=%.4f seconds=%.2f",
            self._store.ref,
            "none" if entry is None else entry.name,
            0 if fresh is None else fresh.table.rows,
            "none" if entry is None else entry.index,
            1.0 if entry is None else entry.recall,
            time.monotonic() - started,
        )
