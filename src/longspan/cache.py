"""Where Longspan keeps what it can make anew."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """$LONGSPAN_CACHE, else $XDG_CACHE_HOME/longspan, else ~/.cache/longspan. May not exist yet."""
    if own := os.environ.get("LONGSPAN_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared).expanduser() if shared else Path.home() / ".cache") / "longspan"
