"""One hostile exchange over a connection of its own: what goes out in which order, and what must come of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Due = Literal["answer", "answer or close", "close", "nothing"]
"""What the server owes for it.

answer: what was sent is complete, and valid as HTTP: there is an answer for each request.
answer or close: what was sent is not HTTP. close: what was sent is not complete; the server closes within its limits,
    with or without an answer. nothing: the client has left.
"""


@dataclass(frozen=True)
class Send:
    """In pieces of `piece` bytes, `every_s` seconds apart; at once where `piece` is 0."""

    data: bytes
    piece: int = 0
    every_s: float = 0.0


@dataclass(frozen=True)
class Wait:
    seconds: float


@dataclass(frozen=True)
class ReadSome:
    """So many bytes of what comes, or all that comes until the answer's end, if it is less."""

    bytes: int


@dataclass(frozen=True)
class Finish:
    """The client says that it sends no more, and goes on reading."""


@dataclass(frozen=True)
class Leave:
    """The connection is closed; with a reset (RST) or in order (FIN)."""

    reset: bool = False


Step = Send | Wait | ReadSome | Finish | Leave


@dataclass(frozen=True)
class Attack:
    """name: what is hostile, as part:detail. answers: how many requests were sent completely.

    methods: of those requests, in order; the answer to HEAD has no body.
    small_window: the client's receive buffer is as small as the system allows.
    """

    name: str
    steps: tuple[Step, ...]
    due: Due = "answer"
    methods: tuple[str, ...] = ("POST",)
    small_window: bool = False

    @property
    def part(self) -> str:
        return self.name.partition(":")[0]
