"""The connections of one server, together: how many, which gives way to a new one, and whose time is up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from starlette.types import Scope

from longspan.engine.departures import Departures
from longspan.entrypoints.openai.errors import ErrorAnswer, overloaded

logger = logging.getLogger("longspan.server")

OnRefused = Callable[[Scope, ErrorAnswer], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """What one connection, and all together, may cost. Sizes in bytes, times in seconds.

    headers: how many, of one request.
    header_s: from a connection's or a request's first moment until its headers are complete.
    body_s: how long a body may make no progress, and the window in which it must come at `body_rate` bytes a second.
    drop_bytes: how much is dropped of what a client goes on to send when its request has been answered already.
    write_s: how long a client may not read what was sent to it.
    """

    connections: int = 2048
    header_bytes: int = 65536
    headers: int = 100
    header_s: float = 30.0
    body_s: float = 30.0
    body_rate: float = 1024.0
    drop_bytes: int = 64 * 1024 * 1024
    write_s: float = 60.0

    @property
    def sweep_s(self) -> float:
        return min(1.0, self.header_s / 4, self.body_s / 4, self.write_s / 4)


class Phase(Enum):
    """The part of a request that a connection expects next."""

    IDLE = auto()
    HEADERS = auto()
    BODY = auto()
    CLOSING = auto()  # nothing: what comes is dropped


class Connection(Protocol):
    """One of them."""

    transport: asyncio.Transport

    def make_room(self) -> None:
        """Close: it is idle, and another one needs its place."""
        ...

    def refuse(self, answer: ErrorAnswer) -> None: ...

    def check(self, now: float) -> None:
        """End if its client has taken too long. now: seconds of the event loop's clock."""
        ...


class Connections:
    """The connections of one server: which may be closed for a new one, and whose time is up."""

    def __init__(self, limits: ConnectionLimits, on_refused: OnRefused) -> None:
        self.limits = limits
        self.on_refused = on_refused
        self.all: set[Connection] = set()
        self.idle: dict[Connection, None] = {}  # without a request at work, the longest first
        self.departures = Departures()  # of requests at work
        self._next_sweep = 0.0

    def add(self, new: Connection) -> None:
        """Takes in a new connection, at the cost of those that have been idle longest if there are too many."""
        self.all.add(new)
        while len(self.all) > self.limits.connections and self.idle:
            longest = next(iter(self.idle))
            self.remove(longest)
            longest.make_room()
        if len(self.all) > self.limits.connections:
            message = f"this server has {self.limits.connections} connections already; try again"
            self.idle[new] = None  # it ends, and never was at work
            new.refuse(overloaded(message, self.departures.after_s()))
        else:
            self.idle[new] = None

    def work(self, connection: Connection) -> None:
        """A request begins on it."""
        if len(self.idle) == len(self.all):
            self.departures.begin()
        self.idle.pop(connection, None)

    def rest(self, connection: Connection) -> None:
        """It has no request at work, and may be closed for a new one."""
        if connection not in self.idle:
            self.departures.note()
        self.idle[connection] = None

    def remove(self, connection: Connection) -> None:
        if connection in self.all and connection not in self.idle:
            self.departures.note()
        self.all.discard(connection)
        self.idle.pop(connection, None)

    def sweep(self, now: float) -> None:
        """End what has taken too long. Cheap enough to be called often: it looks only every `sweep_s`."""
        if now < self._next_sweep:
            return
        self._next_sweep = now + self.limits.sweep_s
        for connection in list(self.all):
            try:
                connection.check(now)
            except Exception:
                logger.exception("a connection could not be looked after, and is cut")
                connection.transport.abort()
