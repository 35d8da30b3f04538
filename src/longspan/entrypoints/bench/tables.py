"""Results on a terminal or in a pipe, and as JSON."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

from longspan import __version__
from longspan.metrics.request_metrics import Distribution

PIPE_WIDTH = 200  # nothing is cut where a program reads it
DISTRIBUTION_HEAD = ("mean", "p50", "p90", "p99", "max")


def console() -> Console:
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)


def distribution_table(title: str, rows: Iterable[tuple[str, Distribution | None]]) -> Table:
    """Make a table of one distribution of seconds a row, shown in milliseconds."""
    table = Table(title, *DISTRIBUTION_HEAD, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, d in rows:
        if d is not None:
            table.add_row(name, *(f"{1000 * seconds:,.1f}" for seconds in (d.mean, d.p50, d.p90, d.p99, d.max)))
    return table


def origin() -> dict[str, Any]:
    """Tell when, with what, and where a result was measured."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S%z"),
        "versions": {"longspan": __version__, "python": platform.python_version()},
        "machine": {"os": platform.platform(terse=True), "cores": os.cpu_count()},
    }
