"""Ports of this machine that tests can count on."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LOWEST = 10_000


@contextmanager
def closed_port() -> Iterator[int]:
    """Yield one at which nobody listens, nor can begin to meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def free_port() -> int:
    """Return one at which somebody may listen later: where there is such, one that the system gives to nobody who asks
    for any, as connections and other tests do all the time."""
    given = Path("/proc/sys/net/ipv4/ip_local_port_range")
    most = int(given.read_text().split()[0]) if given.exists() else 0
    draw = random.SystemRandom()  # runs at the same time take others
    for _ in range(100 if most > _LOWEST else 0):
        port = draw.randrange(_LOWEST, most)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    with socket.create_server(("127.0.0.1", 0)) as door:
        return int(door.getsockname()[1])
