"""Threads for work on clients' texts: so many at once, so much waiting, and no text waits for what no client wants."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from longspan.engine.departures import Departures
from longspan.errors import QueueFullError

T = TypeVar("T")

LARGE = 256 * 1024  # characters; one thread always stays free of such
MAX_WAITING = 1024
_S_PER_CHAR = 2e-6  # what a text is expected to take, when it is decided who is next


class Abandoned(BaseException):
    """Raised inside work whose client left, and never shown."""


@dataclass(order=True, slots=True)
class _Job:
    due: float
    number: int
    size: int = field(compare=False)
    work: Callable[[_Job], Any] = field(compare=False)
    future: asyncio.Future[Any] = field(compare=False)
    loop: asyncio.AbstractEventLoop = field(compare=False)
    wanted: bool = field(default=True, compare=False)

    def check_wanted(self) -> None:
        """Work that comes in steps asks between them."""
        if not self.wanted:
            raise Abandoned


class TextPool:
    """Runs work on threads of its own; short texts overtake long ones, for as long as those are expected to take.

    Work of a client that left is dropped from the queue; while it runs it keeps its thread, but no client waits for it.
    The threads end with the process, whatever they do.

    max_waiting_chars: characters of all texts that wait; more are refused, but one text may always wait alone.
    """

    def __init__(self, max_waiting_chars: int, num_threads: int | None = None) -> None:
        self.max_waiting_chars = max_waiting_chars
        self.num_threads = num_threads or max(2, min(4, os.cpu_count() or 1))
        self._changed = threading.Condition()
        self._queue: list[_Job] = []
        self._numbers = itertools.count()
        self._waiting_chars = 0
        self._large_running = 0
        self._threads = 0
        self._closed = False
        self._departures = Departures()  # of characters that waited

    async def run(self, work: Callable[[Callable[[], None]], T], size: int) -> T:
        """Return what `work` returns, on a thread. size: characters (or bytes) that it reads.

        `work` is called with a function that it should call between its steps, if it has some.

        Raises:
            QueueFullError: too much waits already.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        job = _Job(time.monotonic() + size * _S_PER_CHAR, next(self._numbers), size,
                   lambda job: work(job.check_wanted), future, loop)  # fmt: skip
        self._put(job)
        try:
            return await future
        except asyncio.CancelledError:
            self._drop(job)
            raise

    def close(self) -> None:
        """End the threads after what they do now; what waits never runs."""
        with self._changed:
            self._closed = True
            self._queue.clear()
            self._changed.notify_all()

    def _put(self, job: _Job) -> None:
        with self._changed:
            full = self._queue and self._waiting_chars + job.size > self.max_waiting_chars
            if full or len(self._queue) >= MAX_WAITING:
                lacking = max(self._waiting_chars + job.size - self.max_waiting_chars, 1 + self._queue[0].size)
                raise QueueFullError(
                    f"{len(self._queue)} texts of {self._waiting_chars} characters wait to be read; try again later",
                    retry_after_s=self._departures.after_s(min(lacking, 1 + self._waiting_chars)),
                )
            if not self._queue:
                self._departures.begin()
            self._queue.append(job)
            self._waiting_chars += job.size
            if self._threads < self.num_threads:
                self._threads += 1
                threading.Thread(target=self._serve, name=f"texts-{self._threads}", daemon=True).start()
            self._changed.notify()

    def _drop(self, job: _Job) -> None:
        with self._changed:
            job.wanted = False
            if job in self._queue:
                self._remove(job)

    def _serve(self) -> None:
        while (job := self._take()) is not None:
            try:
                result = job.work(job)
            except BaseException as error:
                self._tell(job, None, error)
            else:
                self._tell(job, result, None)
                del result
            finally:
                with self._changed:
                    if job.size > LARGE:
                        self._large_running -= 1
                        self._changed.notify()
            del job

    def _take(self) -> _Job | None:
        with self._changed:
            while not self._closed:
                small_only = self._large_running >= self.num_threads - 1
                job = min((job for job in self._queue if not (small_only and job.size > LARGE)), default=None)
                if job is not None:
                    self._remove(job)
                    self._large_running += job.size > LARGE
                    return job
                self._changed.wait()
            return None

    def _remove(self, job: _Job) -> None:
        self._queue.remove(job)
        self._waiting_chars -= job.size
        self._departures.note(1 + job.size)  # one, so that empty texts count

    def _tell(self, job: _Job, result: object, error: BaseException | None) -> None:
        def tell() -> None:
            if job.future.done():
                return
            if error is None:
                job.future.set_result(result)
            elif isinstance(error, Exception):
                job.future.set_exception(error)
            elif isinstance(error, Abandoned):
                job.future.cancel()
            else:  # such as a panic of the tokenizer's
                job.future.set_exception(RuntimeError(f"{type(error).__name__}: {error}"))

        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits
            job.loop.call_soon_threadsafe(tell)
