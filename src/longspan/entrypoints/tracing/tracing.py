"""Sends traces by a process of its own: whoever serves hands a request over, and goes on."""

from __future__ import annotations

import logging
import multiprocessing
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from longspan.entrypoints.tracing import process
from longspan.interrupts import interrupts_held_back
from longspan.metrics.ended_request import EndedRequest
from longspan.metrics.engine_collector import LABELS

logger = logging.getLogger("longspan.server")

MOST_WAITING = 2048
"""Requests whose spans wait to be sent; more are dropped, and counted."""
_GATHER_S = 1.0  # what ends in this time is sent together
_LINGER_S = 10.0  # how long the end of the server waits for what is left to be sent


class Tracing:
    """Spans of ended requests, to an OTLP receiver.

    sent: requests whose spans have been taken there. Those that are not sampled count neither there nor as dropped.
    """

    def __init__(self, endpoint: str, model: str, most_waiting: int = MOST_WAITING) -> None:
        """endpoint: a URL that takes OTLP over HTTP. model: its name in the spans."""
        self.sent = 0
        self._endpoint, self._model, self._most_waiting = endpoint, model, most_waiting
        self._queue: deque[EndedRequest] = deque()
        self._refused = self._lost = 0  # each is counted by one thread
        self._rests = False
        self._wake, self._closing = threading.Event(), threading.Event()
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None
        # The kernel ends the process with the thread that started it.
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Return how many requests' spans could not be sent: too many waited, or nobody took them."""
        return self._refused + self._lost

    def take(self, request: EndedRequest) -> None:
        """Hand over a request that has ended; never waits."""
        if len(self._queue) >= self._most_waiting:
            self._refused += 1
            return
        self._queue.append(request)
        if self._rests:  # plainer than asking the event
            self._rests = False
            self._wake.set()

    def close(self) -> None:
        """Send what is left, for a few seconds."""
        self._closing.set()
        self._wake.set()
        self._thread.join(_LINGER_S)
        if self._thread.is_alive():
            logger.warning("the last traces are not sent: nobody has taken them in %g s", _LINGER_S)
            self._refused += len(self._queue)
            self._queue.clear()
            self._end()
            self._thread.join(_LINGER_S)

    # the thread

    def _run(self) -> None:
        with suppress(OSError):  # it is tried again when there is something to send
            self._start()
        while self._queue or not self._closing.is_set():
            self._wake.clear()
            self._rests = True
            if not self._queue and not self._closing.is_set():
                self._wake.wait()
            self._rests = False
            self._closing.wait(_GATHER_S)
            if requests := [self._queue.popleft() for _ in range(len(self._queue))]:
                self._send(requests)
        self._end()

    def _send(self, requests: list[EndedRequest]) -> None:
        try:
            if self._pipe is None:
                self._start()
            assert self._pipe is not None
            self._pipe.send(requests)
            sent, error = self._pipe.recv()
        except (EOFError, OSError):
            self._end()
            sent, error = 0, "the process that sends them has ended; another is started"
        self.sent += sent
        if error:
            self._lost += len(requests)
            logger.warning("the traces of %d requests are lost: %s", len(requests), error)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        with interrupts_held_back():
            started = context.Process(
                target=process.main, args=(theirs, self._endpoint, self._model), name="traces", daemon=True
            )
            started.start()
        self._process = started
        theirs.close()

    def _end(self) -> None:
        ended, self._process = self._process, None
        if ended is not None:
            ended.kill()
            ended.join()
            self._pipe = None


class TracingCollector(Collector):
    """What became of traces, as metrics."""

    def __init__(self, tracing: Tracing, labels: tuple[str, ...]) -> None:
        """labels: values of `LABELS`."""
        self._tracing, self._labels = tracing, labels

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        text = "Requests' traces, by what became of them."
        traces = CounterMetricFamily("longspan:traces", text, labels=(*LABELS, "outcome"))
        traces.add_metric((*self._labels, "sent"), self._tracing.sent)
        traces.add_metric((*self._labels, "dropped"), self._tracing.dropped)
        yield traces
