"""An ingest on gRPC's synchronous API: the caller's thread and one for the stream."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grpc

from shoal.client.documents import GivenDocument
from shoal.client.ingest import IngestSession, IngestWatch, OnRejected, Progress
from shoal.client.model import IngestReport
from shoal.client.sync_routers import SyncRouters
from shoal.client.transport import typed_error
from shoal.errors import NotReady, ShoalError
from shoal.rpc.router.v1 import router_pb2

# How often a waiting caller looks for a stall.
LOOK_S = 0.25
# Time for the cluster to end a stream whose documents are all answered.
GRACE_S = 2.0


class SyncIngest:
    """Runs one session: documents are taken from the iterable in the caller's
    thread, the stream is read in another, and gRPC's own thread asks for messages.
    Everything that touches the session holds the condition.
    """

    def __init__(self, session: IngestSession, routers: SyncRouters) -> None:
        self._session = session
        self._routers = routers
        self._condition = threading.Condition()
        self._stopped = False
        self._failure: BaseException | None = None
        self._stream: Any = None

    def run(
        self,
        documents: Iterable[GivenDocument],
        progress: Progress | None,
        on_rejected: OnRejected,
    ) -> IngestReport:
        """Stores the documents and reports on each."""
        watch = IngestWatch(self._session, progress, on_rejected)

        def look() -> None:
            with self._condition:
                report = watch.due(time.monotonic())
            if progress is not None and report is not None:
                progress(report)

        pump = threading.Thread(target=self._pump, name="shoal-ingest", daemon=True)
        pump.start()
        try:
            for number, given in enumerate(documents):
                self._wait_until(lambda: self._session.has_room, look)
                with self._condition:
                    self._session.offer(number, given, time.monotonic())
                    self._condition.notify_all()
            with self._condition:
                self._session.close()
                self._condition.notify_all()
            self._wait_until(lambda: self._session.done, look)
            pump.join(GRACE_S)
        finally:
            self._stop()
            pump.join()
        if progress is not None:
            progress(self._session.report)
        return self._session.report

    def _wait_until(self, ready: Callable[[], bool], look: Callable[[], None]) -> None:
        while True:
            look()
            with self._condition:
                if self._failure is not None:
                    raise self._failure
                if ready():
                    return
                self._session.check_stall(time.monotonic())
                self._condition.wait(LOOK_S)

    def _stop(self) -> None:
        with self._condition:
            self._stopped = True
            self._condition.notify_all()
            stream = self._stream
        if stream is not None:
            stream.cancel()

    @property
    def _over(self) -> bool:
        return self._stopped or self._session.done

    def _pump(self) -> None:
        try:
            while not self._over:
                self._one_stream()
        except BaseException as error:
            with self._condition:
                self._failure = error
                self._condition.notify_all()

    def _one_stream(self) -> None:
        ended = threading.Event()
        address, rpcs = self._routers.begin()
        error: ShoalError | None = None
        try:
            with self._condition:
                stream = self._stream = rpcs["Ingest"](self._messages(ended))
            for response in stream:
                with self._condition:
                    self._session.receive(response, time.monotonic())
                    self._condition.notify_all()
        except grpc.RpcError as failure:
            error = typed_error(failure, address, cancelled_here=self._stopped)
        finally:
            self._routers.end(address, error)
            with self._condition:
                ended.set()
                self._condition.notify_all()
        with self._condition:
            if self._over:
                return
            early = NotReady("the cluster ended the ingest stream early")
            self._session.broken(error or early, time.monotonic())
            hold_s = self._session.hold_s(time.monotonic())
            self._condition.wait_for(lambda: self._over, hold_s)

    def _messages(self, ended: threading.Event) -> Iterator[router_pb2.IngestRequest]:
        with self._condition:
            start = self._session.open()
        yield start
        while True:
            with self._condition:
                if ended.is_set() or self._over:
                    return
                now = time.monotonic()
                message = self._session.next_message(now)
                if message is None:
                    self._condition.wait(self._session.hold_s(now) or None)
                    continue
            yield message
