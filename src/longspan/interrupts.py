"""Ctrl-C, while processes are being started that it is not meant for."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker


def hold_back_interrupts() -> set[signal.Signals]:
    """Have processes that this thread starts from now on not be reached by Ctrl-C, until they say so themselves.

    Returns the signals that were held back before. multiprocessing's own helper process is started first: whoever
    starts it lets Ctrl-C through again (python/cpython, resource_tracker.py).
    """
    resource_tracker.ensure_running()
    return {*map(signal.Signals, signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}))}


@contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Hold them back meanwhile."""
    before = hold_back_interrupts()
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
