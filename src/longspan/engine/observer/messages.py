"""What the engine's process and the observer tell each other, and its form on the pipes between them.

A message is its length, its kind and its body. Records and frames are MessagePack, for they are many; what is told
once is pickled.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import msgspec

from longspan.core.actions import Action
from longspan.core.decision import Decision
from longspan.core.events import Event
from longspan.core.inventory import Inventory
from longspan.metrics.fleet.frames import About
from longspan.metrics.fleet.lives import Known
from longspan.metrics.request_reader import Opening

Record = tuple[float, Event, Sequence[Action], Sequence[Decision]]
"""One call of the scheduler: when, what it was told, what it decided, and why."""

_HEAD = struct.Struct("<IB")


class Kind(IntEnum):
    """Of a message.

    To the observer: LOG to write; RECORDS; that some are LACKING from here on, and why; HURRY with the log; WATCH,
    PAST, LOOK, LEAVE: of those who look. From it: FRAMES; LOG_ENDED, and why; SAID: a line for the program's log.
    """

    LOG = 0
    RECORDS = 1
    LACKING = 2
    HURRY = 3
    WATCH = 4
    PAST = 5
    LOOK = 6
    LEAVE = 7
    FRAMES = 8
    LOG_ENDED = 9
    SAID = 10


class Told(msgspec.Struct, frozen=True, gc=False):
    """A decision as it is sent: its numbers may be of any kind that a policy has."""

    step: str
    request_ids: tuple[str, ...]
    instances: tuple[int, ...]
    predicted: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Watch:
    """Somebody begins to look, at what is there now. number: of those who do. shift: see `FrameMaker`.

    begin, end: of the records that are remembered of before, which come as `Past`; None if there are none. opening:
    what was under way when they began.
    """

    number: int
    num_instances: int
    inventory: Inventory
    known: Mapping[str, Known]
    now: float
    shift: float
    past: tuple[Opening, float, float] | None


class Past(msgspec.Struct, frozen=True):
    """Some records of before, in order. is_last: no others follow."""

    number: int
    is_last: bool
    records: list[tuple[float, Event, tuple[Action, ...], tuple[Told, ...]]]


class Look(msgspec.Struct, frozen=True):
    """Frames of `now` are asked for, for the watch of that number. about: for a whole one beside the changes, where
    somebody needs that. state: see `Frame`. question: its number, which the answer has."""

    number: int
    question: int
    now: float
    state: str | None = None
    about: About | None = None


class Frames(msgspec.Struct, frozen=True):
    """The answer: server-sent events.

    whole: empty where none was asked for. is_empty: no request is alive. took_s: seconds of CPU time. is_over: there
    will be no others.
    """

    question: int = 0
    changes: bytes = b""
    whole: bytes = b""
    is_empty: bool = False
    took_s: float = 0.0
    is_over: bool = False


def packed(kind: Kind, body: bytes) -> bytes:
    """Return a message."""
    return _HEAD.pack(len(body), kind) + body


class Unpacker:
    """Messages out of pieces of a stream."""

    def __init__(self) -> None:
        self._data = bytearray()

    def take(self, piece: bytes) -> Iterator[tuple[Kind, bytes]]:
        """Yield those that are whole with it."""
        data = self._data
        data += piece
        begin = 0
        while len(data) - begin >= _HEAD.size:
            length, kind = _HEAD.unpack_from(data, begin)
            end = begin + _HEAD.size + length
            if end > len(data):
                break
            yield Kind(kind), bytes(data[begin + _HEAD.size : end])
            begin = end
        del data[:begin]


def _plain(value: Any) -> float:
    """Return a number that a policy gives as a float. Raises TypeError, ValueError: it is none."""
    return float(value)


encode = msgspec.msgpack.Encoder(enc_hook=_plain).encode
decode_records = msgspec.msgpack.Decoder(list[tuple[float, Event, tuple[Action, ...], tuple[Told, ...]]]).decode
decode_past = msgspec.msgpack.Decoder(Past).decode
decode_look = msgspec.msgpack.Decoder(Look).decode
decode_frames = msgspec.msgpack.Decoder(Frames).decode
decode_said = msgspec.msgpack.Decoder(tuple[str, int, str]).decode


def decisions(told: Sequence[Told]) -> tuple[Decision, ...]:
    """Return them as they were."""
    return tuple([Decision(each.step, each.request_ids, each.instances, each.predicted) for each in told])
