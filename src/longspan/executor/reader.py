"""The thread that hears all workers: what they say, that they have ended, and how time goes by.

It reads what processes of this machine say itself; what those of others say is posted to it.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait

from longspan.executor.worker_handle import ProcessHandle, WorkerHandle
from longspan.worker.messages import Reply, decode_reply

CHECK_S = 0.5


class Reader:
    """Calls, one after the other, from a thread of its own:

    take: with each message of a worker. ended: when a worker has ended, after all that it said. check: twice a second,
    and after `wake`, with the seconds that this thread itself was late, in which it could not hear anybody.
    """

    def __init__(
        self,
        take: Callable[[WorkerHandle, Reply], None],
        ended: Callable[[WorkerHandle], None],
        check: Callable[[float], None],
    ) -> None:
        self._take, self._ended, self._check = take, ended, check
        self._sources: dict[Connection | int, ProcessHandle] = {}
        self._handles: Sequence[WorkerHandle] = ()
        self._posted: queue.SimpleQueue[tuple[WorkerHandle, Reply | None]] = queue.SimpleQueue()
        self._early: list[tuple[WorkerHandle, Reply | None]] = []  # of workers that are not heard yet
        self._woken = self._waker = -1
        self._over, self._is_closed = False, True
        self._waking = threading.Lock()
        self._thread = threading.Thread(target=self._read, name="executor", daemon=True)

    def begin(self, handles: Sequence[WorkerHandle]) -> None:
        self.watch(handles)
        self._woken, self._waker = os.pipe()
        os.set_blocking(self._waker, False)
        self._is_closed = False
        self._thread.start()

    def watch(self, handles: Sequence[WorkerHandle]) -> None:
        """Hear these from now on, and no others. Where another thread calls it, `wake` makes it hold at once."""
        processes = [handle for handle in handles if isinstance(handle, ProcessHandle)]
        self._handles = tuple(handles)
        self._sources = {handle.pipe: handle for handle in processes} | {
            handle.process.sentinel: handle for handle in processes
        }

    def post(self, handle: WorkerHandle, reply: Reply | None) -> None:
        """Any thread: hear this of a worker of another machine, once it is heard; None: that it has ended."""
        self._posted.put((handle, reply))
        self.wake()

    def wake(self) -> None:
        """Any thread: there is something to look at."""
        with self._waking:
            if not self._is_closed:
                with suppress(BlockingIOError):  # it has not seen many yet
                    os.write(self._waker, b"\0")

    def end(self, timeout_s: float | None = None) -> None:
        """Hear nothing more. Waits for the thread, unless it is the one that calls."""
        self._over = True
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self.wake()
            self._thread.join(timeout_s)

    def _read(self) -> None:
        while not self._over:
            began = time.monotonic()
            sources = self._sources
            for source in wait([self._woken, *sources], timeout=CHECK_S):
                if source == self._woken:
                    os.read(self._woken, 4096)
                elif self._sources is sources and not self._over:  # else another has changed who is heard
                    self._hear(source, sources[source])  # type: ignore[index]  # a sentinel is an int here
            self._hear_posted()
            if not self._over:
                self._check(max(0.0, time.monotonic() - began - CHECK_S))
        with self._waking:
            self._is_closed = True
            os.close(self._woken)
            os.close(self._waker)

    def _hear_posted(self) -> None:
        posted, self._early = self._early, []
        while not self._posted.empty():
            posted.append(self._posted.get())
        for handle, reply in posted:
            if handle.is_fenced or self._over:
                continue
            if handle not in self._handles:
                self._early.append((handle, reply))
            elif reply is not None:
                self._take(handle, reply)
            else:
                self._ended(handle)

    def _hear(self, source: object, handle: ProcessHandle) -> None:
        if not isinstance(source, Connection):
            self._drain(handle)
            return
        try:
            data = source.recv_bytes()
        except (EOFError, OSError):
            self._drain(handle)
        else:
            self._take(handle, decode_reply(data))

    def _drain(self, handle: ProcessHandle) -> None:
        """What a worker said before it ended says more than its exit code."""
        sources = self._sources
        try:
            while self._sources is sources and handle.pipe.poll():
                self._take(handle, decode_reply(handle.pipe.recv_bytes()))
        except (EOFError, OSError):
            pass
        if self._sources is sources and not self._over:
            self._ended(handle)
