"""What tests ask of processes, and how they wait for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

MOST_S = 60.0


def wait_until(condition: Callable[[], bool], most_s: float = MOST_S) -> None:
    """Return as soon as it holds; fail if it never does."""
    end = time.monotonic() + most_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def is_alive(pid: int) -> bool:
    """Tell whether it runs; one that has ended and that nobody has asked about does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
