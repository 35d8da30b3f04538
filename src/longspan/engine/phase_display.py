"""The phases of a start on standard error: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from longspan.phases import OnPhase, Phase

PLAIN_EVERY_S = 5.0

Say = Callable[[str], None]


def say_on_stderr(text: str) -> None:
    """Write a plain line to standard error."""
    print(f"longspan: {text}", file=sys.stderr, flush=True)


@contextmanager
def shown_phases(say: Say | None = say_on_stderr) -> Iterator[OnPhase]:
    """Show the phases of a start; yields the `on_phase` for the engine.

    say: takes plain lines where standard error is no terminal; None says nothing there.
    """
    if sys.stderr is not None and sys.stderr.isatty():
        with _live() as show:
            yield show
    elif say is not None:
        yield _PlainLines(say)
    else:
        yield lambda phase: None


class _PlainLines:
    """A line when a phase begins, and now and then how far it is."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._text = ""
        self._said_at = 0.0
        self._lock = threading.Lock()

    def __call__(self, phase: Phase) -> None:
        with self._lock:
            now = time.monotonic()
            if phase.text == self._text and now - self._said_at < PLAIN_EVERY_S:
                return
            is_new, self._text, self._said_at = phase.text != self._text, phase.text, now
            self._say(phase.text if is_new else f"{phase.text}: {_how_far(phase)}")


@contextmanager
def _live() -> Iterator[OnPhase]:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.fields[far]}"))
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task: list[TaskID] = []
    lock = threading.Lock()

    def show(phase: Phase) -> None:
        with lock:
            total = phase.total or None
            if not task:
                task.append(bar.add_task("", total=None, far=""))
            bar.update(task[0], description=phase.text, total=total, completed=phase.done, far=_how_far(phase))

    before = sys.stderr
    with bar, _logged_above(before):
        yield show


@contextmanager
def _logged_above(before: TextIO) -> Iterator[None]:
    """While a live line is shown, sys.stderr prints above it; handlers of logging that know the old one follow."""
    handlers = [
        handler
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is before
    ]
    for handler in handlers:
        handler.setStream(sys.stderr)
    try:
        yield
    finally:
        for handler in handlers:
            handler.setStream(before)


def _how_far(phase: Phase) -> str:
    if phase.share is None:
        return ""
    if phase.unit == "bytes":
        return f"{phase.done / 1e6:.0f} of {phase.total / 1e6:.0f} MB"
    return f"{phase.share:.0%}"
