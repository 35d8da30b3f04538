"""`longspan dashboard`: what it takes."""

from __future__ import annotations

from pathlib import Path


def dashboard(file: Path, /, *, port: int = 0, out: Path | None = None) -> int:
    """Show an event log as the page of a running server would have shown it, with a slider for the time.

    It serves the page to this machine alone, until Ctrl-C.

    Args:
        file: An event log, written with `longspan serve --event-log`; any piece of one that was rotated.
        port: Where to serve it on 127.0.0.1; 0 takes a free one.
        out: Instead, write the page with all that it shows into this one file, such as fleet.html, for a browser
            elsewhere. It holds ids, lengths, times, and the stories of those that waited longest.
    """
    from longspan.entrypoints.dashboard.command import serve_log, write_page

    return serve_log(file, port) if out is None else write_page(file, out)
