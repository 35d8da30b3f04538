"""What tests ask of processes, and how they wait for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

MOST_S = 120.0


def wait_until(condition: Callable[[], bool], most_s: float = MOST_S) -> None:
    """Return as soon as it holds; fail if it never does."""
    end = time.monotonic() + most_s
    while not condition():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.005)


def of_session(session: int) -> list[int]:
    """Return those of a session that run. A killed orphan may be a zombie until somebody looks after it."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            state, _, _, its = stat.read_text().rpartition(")")[2].split()[:4]
            if int(its) == session and state != "Z":
                found.append(int(stat.parent.name))
    return found


def read(pid: int, name: str) -> bytes:
    """Return what stands in /proc of it under that name; nothing, if it has ended."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def is_alive(pid: int) -> bool:
    """Tell whether it runs; one that has ended and that nobody has asked about does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
