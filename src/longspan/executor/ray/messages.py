"""What travels between the engine and the process that speaks to Ray for it: a line of JSON each. No ray, no torch.

Machines are numbered as in `Nodes`; each has one instance.
"""

from __future__ import annotations

from typing import Any

import msgspec

from longspan.config import RayPlacement


class AgentOrder(msgspec.Struct, frozen=True):
    """What an agent is to do that Ray has given a place to. settings: fields of `EngineConfig`.

    host, port, key: of the engine. node, own_host, threads: see `AgentSettings`.
    """

    settings: dict[str, Any]
    host: str
    port: int
    key: str
    node: int = 0
    own_host: int = 0
    threads: int = 1


class Connect(msgspec.Struct, frozen=True, tag=True):
    """Join the cluster with this address; None: start one on this machine. timeout_s: in which it has to answer."""

    address: str | None
    timeout_s: float


class Place(msgspec.Struct, frozen=True, tag=True):
    """Have Ray start an agent for each of these machines, and start it anew when it is lost: so often within window_s.

    devices, threads: of each instance, and of each device; threads None: as many as there is room for. timeout_s: in
    which there has to be room for all; None: whenever there is.
    """

    machines: tuple[int, ...]
    order: AgentOrder
    devices: int
    threads: int | None
    how: RayPlacement
    max_restarts: int
    window_s: float
    timeout_s: float | None


class Add(msgspec.Struct, frozen=True, tag=True):
    """One machine more."""

    machine: int


class Connected(msgspec.Struct, frozen=True, tag=True):
    """address: by which nodes of the cluster reach this one."""

    address: str


class Placed(msgspec.Struct, frozen=True, tag=True):
    """Ray has given a machine a place, and its agent begins there."""

    machine: int
    address: str
    cpus: int


class Lost(msgspec.Struct, frozen=True, tag=True):
    """An agent has ended, or never began, and why; Ray is asked for another after so many seconds."""

    machine: int
    why: str
    again_s: float


class Failed(msgspec.Struct, frozen=True, tag=True):
    """Nothing can be placed at all, and why."""

    why: str


ToDriver = Connect | Place | Add
ToEngine = Connected | Placed | Lost | Failed

_encoder = msgspec.json.Encoder()
_to_driver = msgspec.json.Decoder(ToDriver)
_to_engine = msgspec.json.Decoder(ToEngine)


def encode(message: ToDriver | ToEngine | AgentOrder) -> bytes:
    """Return it without a line's end."""
    return _encoder.encode(message)


def decode_to_driver(line: bytes) -> ToDriver:
    """Raises msgspec.DecodeError."""
    message: ToDriver = _to_driver.decode(line)
    return message


def decode_to_engine(line: bytes) -> ToEngine:
    """Raises msgspec.DecodeError."""
    message: ToEngine = _to_engine.decode(line)
    return message
