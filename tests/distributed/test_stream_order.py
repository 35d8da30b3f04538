"""Threads with streams of their own: what one reads of another is ordered on the device, not only among the hosts.

A stream's operators and events are noted here in the order in which it would work them off. Between streams there is
no other order than by events; so every reading has to lie behind the writing, and what is written next behind that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from longspan.distributed.local import LocalTensorParallel, LocalTransport, LocalWorld
from longspan.distributed.stream import Event, HostEvent, HostStream
from tests.threads import in_threads

Node = tuple[int, int]  # (stream, place in it)


class NotedStream(HostStream):
    """notes: names of operators; ("record", event); ("wait", event)."""

    def __init__(self) -> None:
        self.notes: list[Any] = []

    def record(self) -> Event:
        event = HostEvent()
        self.notes.append(("record", event))
        return event

    def wait_for(self, event: Event) -> None:
        self.notes.append(("wait", event))


class Noting(TorchDispatchMode):
    """Operators of this thread, into the stream's notes."""

    def __init__(self, stream: NotedStream) -> None:
        super().__init__()
        self.stream = stream

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.stream.notes.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def noted(work: Callable[[int, NotedStream], None], ranks: int, world: LocalWorld) -> list[NotedStream]:
    streams = [NotedStream() for _ in range(ranks)]

    def run(rank: int) -> None:
        with Noting(streams[rank]):
            work(rank, streams[rank])

    in_threads(run, range(ranks), world.give_up)
    return streams


def behind(streams: list[NotedStream], start: Node) -> set[Node]:
    """All that comes behind it, whatever the streams' speeds."""
    recorded = {
        note[1]: (s, i)
        for s, stream in enumerate(streams)
        for i, note in enumerate(stream.notes)
        if note[0] == "record"
    }
    waits: dict[Node, list[Node]] = {}
    for s, stream in enumerate(streams):
        for i, note in enumerate(stream.notes):
            if note[0] == "wait":
                waits.setdefault(recorded[note[1]], []).append((s, i))
    reached, left = set(), [start]
    while left:
        stream, place = left.pop()
        nexts = waits.get((stream, place), [])
        if place + 1 < len(streams[stream].notes):
            nexts = [*nexts, (stream, place + 1)]
        left += [node for node in nexts if node not in reached]
        reached |= set(nexts)
    return reached


def places(streams: list[NotedStream], rank: int, operator: str) -> list[Node]:
    return [(rank, i) for i, note in enumerate(streams[rank].notes) if note == operator]


def test_a_message_is_read_behind_its_writing_and_before_the_next() -> None:
    world = LocalWorld(2, tp_size=1)

    def work(rank: int, stream: NotedStream) -> None:
        transport = LocalTransport(world, rank, stream)
        tensor = torch.empty(4)
        if rank == 0:
            tensor.fill_(1.0)
            transport.exchange([(tensor, 1)], []).wait()
            tensor.fill_(2.0)
        else:
            transport.exchange([], [(tensor, 0)]).wait()
            assert tensor.tolist() == [1.0] * 4

    streams = noted(work, 2, world)
    (written, next_written), (read,) = places(streams, 0, "fill_"), places(streams, 1, "copy_")
    assert read in behind(streams, written)
    assert next_written in behind(streams, read)


def test_a_sum_is_taken_behind_all_parts_and_before_any_is_written_again() -> None:
    world = LocalWorld(3, tp_size=3)

    def work(rank: int, stream: NotedStream) -> None:
        tensor = torch.empty(4)
        tensor.fill_(rank + 1.0)
        assert LocalTensorParallel(world, rank, stream).all_reduce_(tensor).tolist() == [6.0] * 4

    streams = noted(work, 3, world)
    for rank in range(3):
        (written,) = places(streams, rank, "fill_")
        for other in range(3):
            (read,), (next_written,) = places(streams, other, "stack"), places(streams, rank, "copy_")
            assert read in behind(streams, written)
            assert next_written in behind(streams, read)
