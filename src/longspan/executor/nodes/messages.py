"""What travels between the engine and the agents of other machines: plain data, msgpack on the wire. No torch.

The engine numbers workers; a number is used once.
"""

from __future__ import annotations

import msgspec

from longspan.worker.spec import WorkerSpec


class Join(msgspec.Struct, frozen=True, tag=True):
    """A machine offers itself. facts: what has to be the same on all, by what it is called.

    host: see `Machine`; None: one of its own, with the number of the node.
    """

    node: int
    facts: dict[str, str]
    host: int | None = None


class Welcome(msgspec.Struct, frozen=True, tag=True):
    """It is taken. timeout_s: whoever hears nothing of the other for so long takes it for lost, workers too.

    log_level: of what workers tell.
    """

    timeout_s: float
    log_level: int


class Refused(msgspec.Struct, frozen=True, tag=True):
    """It is not taken, and why."""

    why: str


class Start(msgspec.Struct, frozen=True, tag=True):
    """Start a worker for each spec; they meet in one place, which gets this number and stays until `Met`."""

    place: int
    workers: tuple[int, ...]
    specs: tuple[WorkerSpec, ...]


class Met(msgspec.Struct, frozen=True, tag=True):
    """Workers have met there."""

    place: int


class Tell(msgspec.Struct, frozen=True, tag=True):
    """Hand a worker a command, as `worker.messages` encodes it."""

    worker: int
    command: bytes


class Kill(msgspec.Struct, frozen=True, tag=True):
    """End a worker."""

    worker: int


class Leave(msgspec.Struct, frozen=True, tag=True):
    """The engine ends, and all workers with it."""


class Alive(msgspec.Struct, frozen=True, tag=True):
    """A sign of life, from either end."""


class Started(msgspec.Struct, frozen=True, tag=True):
    """The workers of a `Start`, and the ids of their processes; or why there are none."""

    place: int
    pids: tuple[int, ...] = ()
    error: str = ""


class Said(msgspec.Struct, frozen=True, tag=True):
    """A worker's reply, as `worker.messages` encodes it."""

    worker: int
    reply: bytes


class Ended(msgspec.Struct, frozen=True, tag=True):
    """A worker has ended by itself, or was given up, after all that it said. has_crashed: see `WorkerHandle`."""

    worker: int
    message: str
    has_crashed: bool


class Leaving(msgspec.Struct, frozen=True, tag=True):
    """The machine is told to stop: its instances are to be emptied."""


ToAgent = Welcome | Refused | Start | Met | Tell | Kill | Leave | Alive
ToEngine = Join | Started | Said | Ended | Leaving | Alive

_encoder = msgspec.msgpack.Encoder()
_to_agent = msgspec.msgpack.Decoder(ToAgent)
_to_engine = msgspec.msgpack.Decoder(ToEngine)


def encode(message: ToAgent | ToEngine) -> bytes:
    return _encoder.encode(message)


def decode_to_agent(data: bytes) -> ToAgent:
    """Raises msgspec.DecodeError."""
    message: ToAgent = _to_agent.decode(data)
    return message


def decode_to_engine(data: bytes) -> ToEngine:
    """Raises msgspec.DecodeError."""
    message: ToEngine = _to_engine.decode(data)
    return message
