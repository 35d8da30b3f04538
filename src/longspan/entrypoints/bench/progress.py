"""How far a run is: one live line on a terminal, a plain line now and then elsewhere. To standard error."""

from __future__ import annotations

import time

from longspan.entrypoints.bench.open_loop import Counts
from longspan.entrypoints.live_line import show


async def watch(counts: Counts) -> None:
    """Show progress until cancelled."""
    began = time.monotonic()
    await show(lambda: line(counts, time.monotonic() - began))


def line(counts: Counts, seconds: float) -> str:
    ended = "".join(f", {number} {outcome}" for outcome, number in sorted(counts.ended.items()))
    rate = counts.output_pieces / seconds if seconds > 0 else 0.0
    return (
        f"{seconds:.0f} s: {counts.departed} of {counts.planned} sent, {counts.running} running{ended}; "
        f"{rate:.1f} pieces of output/s"
    )
