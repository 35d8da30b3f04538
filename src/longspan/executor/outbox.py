"""Sending to a worker without ever waiting for it: one that is stopped reads nothing, and others are to go on."""

from __future__ import annotations

import select
import threading
from collections import deque
from contextlib import suppress
from typing import Protocol

_SMALL = 32 << 10
"""Bytes that a pipe takes at once where it is writable at all: a quarter of its buffer is in use by then at most."""


class Pipe(Protocol):
    """What messages are sent by: it takes `_SMALL` bytes at once where it is writable."""

    def fileno(self) -> int: ...

    def send_bytes(self, buf: bytes, /) -> None: ...

    def close(self) -> None: ...


class Outbox:
    """Messages to one worker, or machine, in order. What its pipe does not take at once, a thread sends."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._writable = select.poll()
        self._writable.register(pipe.fileno(), select.POLLOUT)
        self._backlog: deque[bytes] = deque()
        self._works_off = self._closed = False
        self._sending = threading.Lock()
        self._thread: threading.Thread | None = None

    def send(self, data: bytes) -> None:
        """Raises OSError if the worker has ended, and that is known."""
        with self._sending:
            if self._closed:
                raise OSError("the worker is no more")
            if not self._works_off and len(data) <= _SMALL and self._writable.poll(0):
                self._pipe.send_bytes(data)
                return
            self._backlog.append(data)
            if not self._works_off:
                self._works_off = True
                self._thread = threading.Thread(target=self._work_off, name="outbox", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Send nothing more, and close the pipe. The worker has ended."""
        with self._sending:
            self._closed = True
            self._backlog.clear()
        if self._thread is not None:
            self._thread.join()  # it may be writing
        self._pipe.close()

    def _work_off(self) -> None:
        with suppress(OSError):  # it has ended, as the reader finds out, with the reason
            while True:
                with self._sending:
                    if not self._backlog:
                        self._works_off = False
                        return
                    data = self._backlog.popleft()
                self._pipe.send_bytes(data)
