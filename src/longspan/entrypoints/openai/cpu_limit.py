"""A limit on the CPU time of Python code that is not ours, such as a model's chat template."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

_LOOK_EVERY_S = 0.1


class CpuLimitExceeded(BaseException):
    """Raised into code that ran for too long; nothing that it catches catches this."""


@dataclass(slots=True)
class _Watched:
    clock: Callable[[], float]
    until: float


class CpuLimit:
    """Ends functions that use too much of their thread's CPU time, at the next Python instruction.

    One watching thread serves all; while nothing runs it sleeps.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._watched: dict[int, _Watched] = {}
        self._watching = False

    def run(self, work: Callable[[], T], seconds: float) -> T:
        """What `work` returns. Raises CpuLimitExceeded after `seconds` of CPU time of this thread."""
        thread = threading.get_ident()
        clock = _cpu_clock(thread)
        try:
            self._watch(thread, _Watched(clock, clock() + seconds))
            return work()
        finally:
            with self._changed:
                self._watched.pop(thread, None)
                _raise_in(thread, None)  # what was sent and has not arrived yet would hit what this thread does next

    def _watch(self, thread: int, watched: _Watched) -> None:
        with self._changed:
            self._watched[thread] = watched
            if not self._watching:
                self._watching = True
                threading.Thread(target=self._look, name="cpu-limit", daemon=True).start()
            self._changed.notify()

    def _look(self) -> None:
        while True:
            with self._changed:
                while not self._watched:
                    self._changed.wait()
                for thread, watched in self._watched.items():  # they live: they need the lock to leave
                    if watched.clock() > watched.until:
                        _raise_in(thread, CpuLimitExceeded)
            time.sleep(_LOOK_EVERY_S)


def _cpu_clock(thread: int) -> Callable[[], float]:
    if not hasattr(time, "pthread_getcpuclockid"):  # not on macOS
        return time.monotonic
    clock = time.pthread_getcpuclockid(thread)
    return lambda: time.clock_gettime(clock)


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), None if error is None else ctypes.py_object(error)
    )
