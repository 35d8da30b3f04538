"""How far a run is: one live line on a terminal, a plain line now and then elsewhere. To standard error."""

from __future__ import annotations

import asyncio
import sys
import time

from rich.console import Console
from rich.live import Live
from rich.text import Text

from longspan.entrypoints.bench.open_loop import Counts

LIVE_EVERY_S = 0.25
PLAIN_EVERY_S = 10.0


async def watch(counts: Counts) -> None:
    """Show progress until cancelled."""
    began = time.monotonic()
    if not sys.stderr.isatty():
        while True:
            await asyncio.sleep(PLAIN_EVERY_S)
            print(line(counts, time.monotonic() - began), file=sys.stderr, flush=True)
    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:
        while True:
            live.update(Text(line(counts, time.monotonic() - began)), refresh=True)
            await asyncio.sleep(LIVE_EVERY_S)


def line(counts: Counts, seconds: float) -> str:
    ended = "".join(f", {number} {outcome}" for outcome, number in sorted(counts.ended.items()))
    rate = counts.output_pieces / seconds if seconds > 0 else 0.0
    return (
        f"{seconds:.0f} s: {counts.departed} of {counts.planned} sent, {counts.running} running{ended}; "
        f"{rate:.1f} pieces of output/s"
    )
