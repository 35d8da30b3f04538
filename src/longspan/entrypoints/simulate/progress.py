"""How far a simulation is: a bar on a terminal, a line now and then elsewhere. To standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_EVERY_S = 10.0

Report = Callable[[int, float], None]
"""(requests that have ended, virtual seconds)"""


@contextmanager
def progress(num_requests: int) -> Iterator[Report]:
    if sys.stderr.isatty():
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("requests, {task.description}"), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=num_requests)
            yield lambda ended, now: bar.update(task, completed=ended, description=f"{now:,.0f} s simulated")
        return
    said = time.monotonic()

    def say(ended: int, now: float) -> None:
        nonlocal said
        if time.monotonic() - said >= PLAIN_EVERY_S:
            said = time.monotonic()
            print(f"{ended} of {num_requests} requests, {now:,.0f} s simulated", file=sys.stderr, flush=True)

    yield say
