"""One line that tells how far something is: live on a terminal, now and then elsewhere. To standard error."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

from rich.console import Console
from rich.live import Live
from rich.text import Text

LIVE_EVERY_S = 0.25
PLAIN_EVERY_S = 10.0


async def show(line: Callable[[], str]) -> None:
    """Show what `line` returns until cancelled."""
    if not sys.stderr.isatty():
        while True:
            await asyncio.sleep(PLAIN_EVERY_S)
            print(line(), file=sys.stderr, flush=True)
    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:
        while True:
            live.update(Text(line()), refresh=True)
            await asyncio.sleep(LIVE_EVERY_S)
