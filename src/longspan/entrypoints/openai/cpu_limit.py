"""A limit on the CPU time of Python code that is not ours, such as a model's chat template."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

_LOOK_EVERY_S = 0.02
_REST_AFTER = 100  # looks at nothing


class CpuLimitExceeded(BaseException):
    """Raised into code that ran for too long; nothing that it catches catches this."""


@dataclass(slots=True)
class _Watched:
    clock: Callable[[], float]
    until: float
    ended: bool = False


class CpuLimit:
    """Ends functions that use too much of their thread's CPU time, at the next Python instruction.

    One watching thread serves all; it ends when nothing has run for some seconds.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # not a Condition: what is raised into a thread must not come between its steps
        self._watched: dict[int, _Watched] = {}
        self._awake = False

    def run(self, work: Callable[[], T], seconds: float) -> T:
        """Return what `work` returns. Raises CpuLimitExceeded after `seconds` of CPU time of this thread."""
        thread = threading.get_ident()
        clock = _cpu_clock(thread)
        watched = _Watched(clock, clock() + seconds)
        self._watch(thread, watched)
        try:
            return work()
        finally:
            while True:
                try:
                    with self._lock:
                        self._watched.pop(thread, None)
                    # What was raised into this thread and has not arrived yet would hit what it does next.
                    for _ in range(1000 if watched.ended else 0):
                        pass
                    break
                except CpuLimitExceeded:
                    pass

    def _watch(self, thread: int, watched: _Watched) -> None:
        with self._lock:
            self._watched[thread] = watched
            if self._awake:
                return
            self._awake = True
        threading.Thread(target=self._look, name="cpu-limit", daemon=True).start()

    def _look(self) -> None:
        idle = 0
        while True:
            time.sleep(_LOOK_EVERY_S)
            with self._lock:
                idle = 0 if self._watched else idle + 1
                if idle > _REST_AFTER:
                    self._awake = False
                    return
                for thread, watched in self._watched.items():  # they live: they need the lock to leave
                    if watched.clock() > watched.until:
                        watched.ended = True
                        _raise_in(thread, CpuLimitExceeded)


def _cpu_clock(thread: int) -> Callable[[], float]:
    if not hasattr(time, "pthread_getcpuclockid"):  # not on macOS
        return time.monotonic
    clock = time.pthread_getcpuclockid(thread)
    return lambda: time.clock_gettime(clock)


def _raise_in(thread: int, error: type[BaseException]) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error))
