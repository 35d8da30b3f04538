"""Ctrl-C and SIGTERM: who hears of them, and that processes which are being started do not."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
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


@contextmanager
def stopped_by(stop: Callable[[int], object]) -> Iterator[None]:
    """Have Ctrl-C and SIGTERM call `stop` with the signal's number on the running event loop, meanwhile.

    Afterwards both do what they do by default: some loops (uvloop's) would keep the handlers when they are closed.
    """
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, stop, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
