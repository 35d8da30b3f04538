"""The engine's end of the pipes to an observer, and its process."""

from __future__ import annotations

import fcntl
import os
import select
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress

from longspan.engine.observer.messages import Kind, Unpacker, packed

MOST_PENDING_BYTES = 64 << 20
_PIPE_BYTES = 1 << 20  # the most that a user may have: about a second of records
_PIECE = 1 << 20
_LOOK_S = 1.0  # how often a thread that waits looks whether it still should

_ENDED = "the process that writes it has ended"

Message = tuple[Kind, bytes]


class Line:
    """One observer, from its start to its end.

    Who sends never waits: where the pipe is full, a thread sends the rest. fileno: is readable when there is something
    to `receive`.
    """

    def __init__(self, kept: tuple[int, ...] = ()) -> None:
        """kept: descriptors that the process has, too. Raises OSError: it cannot be started."""
        source, self._target = os.pipe()
        self.fileno, target = os.pipe()
        try:
            if hasattr(fcntl, "F_SETPIPE_SZ"):
                fcntl.fcntl(self._target, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        except OSError:  # its user has too many of them: a smaller one will do
            pass
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; from longspan.engine.observer.process import main; "
            f"main({source}, {target})"
        )
        try:
            # Not multiprocessing's: who calls `LLM` need not have a module that can be imported twice. In a group of
            # its own it hears nothing of Ctrl-C.
            self._process = subprocess.Popen(
                [sys.executable, "-c", code], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                pass_fds=(source, target, *kept), process_group=0,
            )  # fmt: skip
        except OSError:
            os.close(self._target)
            os.close(self.fileno)
            raise
        finally:
            os.close(source)
            os.close(target)
        for number in (self._target, self.fileno):
            os.set_blocking(number, False)
        self._unpacker = Unpacker()
        self._pending: deque[bytes] = deque()
        self._pending_bytes = 0
        self._lock = threading.Lock()
        self._sender: threading.Thread | None = None
        self._has_ended = False

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def pending_bytes(self) -> int:
        """Return how much waits for room in the pipe."""
        return self._pending_bytes

    def send(self, kind: Kind, body: bytes) -> None:
        """Send a message, now or soon. Raises OSError: it has ended, or does not take what it is sent."""
        data = packed(kind, body)
        with self._lock:
            if self._has_ended:
                raise BrokenPipeError(_ENDED)
            if self._sender is None:
                data = data[self._write(data) :]
                if not data:
                    return
            self._pending.append(data)
            self._pending_bytes += len(data)
            if self._pending_bytes > MOST_PENDING_BYTES:
                raise TimeoutError(
                    f"the process that writes it does not keep up, with {MOST_PENDING_BYTES >> 20} MiB to take"
                )
            if self._sender is None:
                self._sender = threading.Thread(target=self._send_pending, name="observer", daemon=True)
                self._sender.start()

    def receive(self) -> list[Message]:
        """Return the messages that are there. Raises EOFError: it has ended."""
        found: list[Message] = []
        while True:
            try:
                piece = os.read(self.fileno, _PIECE)
            except BlockingIOError:
                return found
            if not piece:
                if found:
                    return found
                raise EOFError(_ENDED)
            found += self._unpacker.take(piece)

    def finish(self, timeout_s: float) -> tuple[list[Message], bool]:
        """Have it read what is on its way, and end. Returns what it says until then, and whether it has come to it."""
        deadline = time.monotonic() + timeout_s
        if (sender := self._sender) is not None:
            sender.join(timeout_s)
        self._hang_up()
        found: list[Message] = []
        while (left_s := deadline - time.monotonic()) > 0:
            _wait_for(self.fileno, select.POLLIN, left_s)
            try:
                found += self.receive()
            except EOFError:
                break
        has_come = left_s > 0
        self.kill()
        return found, has_come

    def kill(self) -> None:
        """Have it end now."""
        self._hang_up()
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):  # it waits for a disk, and ends with that
            self._process.wait(_LOOK_S)
        if self.fileno >= 0:
            os.close(self.fileno)
            self.fileno = -1

    def _hang_up(self) -> None:
        with self._lock:
            if not self._has_ended:
                self._has_ended = True
                os.close(self._target)

    def _write(self, data: bytes) -> int:
        try:
            return os.write(self._target, data)
        except BlockingIOError:
            return 0
        except BrokenPipeError:
            raise BrokenPipeError(_ENDED) from None

    def _send_pending(self) -> None:
        """The thread, as long as anything waits for room."""
        while True:
            with self._lock:
                if not self._pending or self._has_ended:
                    self._sender = None
                    return
                first = self._pending.popleft()
                try:
                    count = self._write(first)
                except OSError:  # whoever sends next is told
                    self._pending.clear()
                    self._pending_bytes, self._sender = 0, None
                    return
                self._pending_bytes -= count
                if count < len(first):
                    self._pending.appendleft(first[count:])
                target = self._target
            if count < len(first):
                _wait_for(target, select.POLLOUT, _LOOK_S)


def _wait_for(fileno: int, event: int, timeout_s: float) -> None:
    """Unlike `select.select` this takes any descriptor: a server may have thousands of connections."""
    poll = select.poll()
    poll.register(fileno, event)
    poll.poll(1000 * timeout_s)
