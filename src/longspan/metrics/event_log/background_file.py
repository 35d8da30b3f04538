"""A file that is written by a thread of its own: who gives it bytes never waits for the disk."""

from __future__ import annotations

import os
import threading
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from longspan.metrics.event_log.files import create_piece

INTERVAL_S = 1.0
MOST_PENDING_BYTES = 16 << 20
_CLOSE_TIMEOUT_S = 5.0
_LEVEL = 6


@dataclass(frozen=True, slots=True)
class _Next:
    """Go on in a new file, and remove an old one."""

    path: Path
    removed: Path | None


class BackgroundFile:
    """Bytes go out in the order in which they came, about once a second, or when `hurry` says so.

    on_error: called once, on either thread, with what ended it; nothing is written from then on.
    compresses: gzip. What a killed process has written can be read all the same.
    """

    def __init__(self, descriptor: int, compresses: bool, on_error: Callable[[Exception], None]) -> None:
        self._descriptor = descriptor
        self._compressor = _compressor() if compresses else None
        self._on_error = on_error
        self._queue: deque[bytes | _Next] = deque()
        # Each is changed by one thread only: what was given, and what is done with.
        self._given = self._done = 0
        self._failed = self._closing = self._rests = False
        self._wake, self._hurry, self._drained = threading.Event(), threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="event-log", daemon=True)
        self._thread.start()

    @property
    def pending_bytes(self) -> int:
        return self._given - self._done

    def put(self, data: bytes) -> None:
        """Queue bytes; never waits. More than MOST_PENDING_BYTES that the disk does not take are an error."""
        if self._failed:
            return
        self._queue.append(data)
        self._given += len(data)
        if self._rests:  # plainer than asking the event, which this does for every record
            self._rests = False
            self._wake.set()
        if self._given - self._done > MOST_PENDING_BYTES:
            self._fail(TimeoutError(f"the disk does not keep up, with {MOST_PENDING_BYTES >> 20} MiB to write"))

    def go_on_in(self, path: Path, removed: Path | None = None) -> None:
        """Put what comes from now on into a new file by this name; the other is removed, if it exists."""
        if not self._failed:
            self._queue.append(_Next(path, removed))

    def hurry(self) -> None:
        """Write now what is there. Does not wait for it."""
        self._hurry.set()
        self._wake.set()

    def wait_for_room(self) -> None:
        """Wait until half of what may be pending is free."""
        while self.pending_bytes > MOST_PENDING_BYTES // 2 and not self._failed:
            self._drained.clear()
            self.hurry()
            self._drained.wait(INTERVAL_S)

    def end(self) -> None:
        """Write what is left, and close the file. Does not wait for it."""
        self._closing = True
        self.hurry()

    def close(self, timeout_s: float = _CLOSE_TIMEOUT_S) -> None:
        """Write what is left. A disk that takes longer is left to itself."""
        self.end()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._fail(TimeoutError(f"the disk did not take the last {self.pending_bytes} bytes in {timeout_s:g} s"))

    # the thread

    def _run(self) -> None:
        try:
            try:
                while not (self._closing and not self._queue) and not self._failed:
                    self._wake.clear()
                    self._rests = True
                    if not self._queue and not self._closing:
                        self._wake.wait()
                    self._rests = False
                    self._hurry.wait(INTERVAL_S)
                    self._hurry.clear()
                    self._drain()
                    self._drained.set()
                self._finish()
            finally:
                os.close(self._descriptor)
        except Exception as error:
            self._fail(error)

    def _drain(self) -> None:
        parts: list[bytes] = []
        while self._queue and not self._failed:
            item = self._queue.popleft()
            if isinstance(item, bytes):
                parts.append(item)
            else:
                self._write(parts)
                self._change(item)
        self._write(parts)

    def _write(self, parts: list[bytes]) -> None:
        data = b"".join(parts)
        parts.clear()
        if data and self._compressor is not None:
            self._write_all(self._compressor.compress(data) + self._compressor.flush(zlib.Z_SYNC_FLUSH))
        else:
            self._write_all(data)
        self._done += len(data)

    def _write_all(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def _change(self, item: _Next) -> None:
        self._finish()
        descriptor = create_piece(item.path)
        before, self._descriptor = self._descriptor, descriptor
        os.close(before)
        if self._compressor is not None:
            self._compressor = _compressor()
        if item.removed is not None:
            item.removed.unlink(missing_ok=True)

    def _finish(self) -> None:
        if self._compressor is not None and not self._failed:
            self._write_all(self._compressor.flush(zlib.Z_FINISH))

    def _fail(self, error: Exception) -> None:
        with self._lock:
            first, self._failed = not self._failed, True
        self._queue.clear()
        self._done = self._given
        self._drained.set()
        if first:
            self._on_error(error)


def _compressor() -> zlib._Compress:
    return zlib.compressobj(_LEVEL, zlib.DEFLATED, 31)
