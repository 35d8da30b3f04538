"""When instances are lost, join and leave: as a file says, or drawn from mean times."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from longspan.core.events import FleetEvent, InstanceJoined, InstanceLeaving, InstanceLost
from longspan.errors import ConfigError

FleetTimes = Sequence[tuple[float, FleetEvent]]
"""Seconds and what happens then, in order."""


class _Line(Struct, forbid_unknown_fields=True):
    """One line of a file. time: seconds."""

    time: float
    event: Literal["lost", "joined", "leaving"]
    instance: int


def read_fleet_events(path: Path, num_instances: int, kv_tokens: int) -> FleetTimes:
    """Read lines of JSON, such as {"time": 60.0, "event": "lost", "instance": 3}, in order of time.

    Raises ConfigError: it cannot be read, or tells what cannot be; the message names the line.
    """
    serving, events = set(range(num_instances)), list[tuple[float, FleetEvent]]()
    leaving: set[int] = set()
    before = 0.0
    for number, line in enumerate(_lines(path), start=1):
        where = f"{path}, line {number}"
        try:
            told = msgspec.json.decode(line, type=_Line)
        except msgspec.MsgspecError as error:
            raise ConfigError(f"{where}: {error}") from error
        if not before <= told.time < float("inf"):
            raise ConfigError(f"{where}: the time is {told.time}, but lines are in order of time, in seconds from 0 on")
        before = told.time
        if not 0 <= told.instance < num_instances:
            raise ConfigError(f"{where}: there is no instance {told.instance}, only 0 to {num_instances - 1}")
        events.append((told.time, _event(told, serving, leaving, kv_tokens, where)))
    return with_returns(events)


def draw_fleet_events(
    mtbf_s: float, mttr_s: float, num_instances: int, kv_tokens: int, until_s: float, seed: int
) -> FleetTimes:
    """Draw when each instance is lost, and when it joins again: exponentially distributed times.

    mtbf_s: the mean time for which an instance serves. mttr_s: for which it is away. until_s: no loss is later.
    """
    rng, events = random.Random(seed), list[tuple[float, FleetEvent]]()
    for instance in range(num_instances):
        at = rng.expovariate(1.0 / mtbf_s)
        while at < until_s:
            events.append((at, InstanceLost(instance)))
            at += rng.expovariate(1.0 / mttr_s)
            events.append((at, InstanceJoined(instance, kv_tokens)))
            at += rng.expovariate(1.0 / mtbf_s)
    return sorted(events, key=lambda event: (event[0], event[1].instance))


def with_returns(events: FleetTimes) -> FleetTimes:
    """Return the events, with losses that tell whether the instance joins again."""
    returning: set[int] = set()
    found: list[tuple[float, FleetEvent]] = []
    for at, event in reversed(events):
        if isinstance(event, InstanceJoined):
            returning.add(event.instance)
        elif isinstance(event, InstanceLost):
            event = replace(event, returns=event.instance in returning)
        found.append((at, event))
    return found[::-1]


def _lines(path: Path) -> Iterator[bytes]:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    return (line for line in text.splitlines() if line.strip())


def _event(told: _Line, serving: set[int], leaving: set[int], kv_tokens: int, where: str) -> FleetEvent:
    """The event of a line; serving and leaving: as they are then, changed."""
    instance = told.instance
    is_right = instance not in serving if told.event == "joined" else instance in serving
    if not is_right or (told.event == "leaving" and instance in leaving):
        state = "is leaving" if instance in leaving else "serves" if instance in serving else "does not serve"
        raise ConfigError(f"{where}: instance {instance} cannot be {told.event}, for it {state} then")
    if told.event == "joined":
        serving.add(instance)
        return InstanceJoined(instance, kv_tokens)
    if told.event == "leaving":
        leaving.add(instance)
        return InstanceLeaving(instance)
    serving.discard(instance)
    leaving.discard(instance)
    return InstanceLost(instance)
