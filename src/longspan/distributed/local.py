"""Exchange between threads of one process: the `inproc` executor's transport and tensor parallelism.

A send is a rendezvous: the receiver copies straight out of the sender's tensor, and only then does the sender's
`wait` return, so a buffer that is reused too early goes wrong here just as it would over a network.

Each thread has a stream of its own on its device. A tensor goes with the event behind which it is there, and the sender
hears the event behind which it has been read; either puts that event before its own further work.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from longspan.distributed.stream import Event, HostStream, Stream
from longspan.distributed.transport import Exchange
from longspan.errors import EngineDeadError

_POLL_S = 0.2  # how soon a waiting thread notices that the world was given up


@dataclass
class LocalWorld:
    """The threads of one process share a channel for each ordered pair, and a barrier for each instance."""

    world_size: int
    tp_size: int
    given_up: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        ranks = range(self.world_size)
        self.channels = {(src, dst): _Channel() for src in ranks for dst in ranks}
        self.tp_rooms = [_MeetingRoom(self.tp_size) for _ in range(self.world_size // self.tp_size)]

    def give_up(self) -> None:
        """Wake every thread that waits for another one, with an error."""
        self.given_up.set()
        for room in self.tp_rooms:
            room.barrier.abort()


class _MeetingRoom:
    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size)
        self.table: list[tuple[torch.Tensor, Event] | None] = [None] * size
        self.read: list[Event | None] = [None] * size


@dataclass
class _Letter:
    """written, copied: events of the sender's stream, and of the receiver's once it has `read`."""

    tensor: torch.Tensor
    written: Event
    copied: Event | None = None
    read: threading.Event = field(default_factory=threading.Event)


class _Channel:
    """Letters from one rank to another; the n-th send meets the n-th receive, in the order they were started."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.letters: dict[int, _Letter] = {}
        self.num_sent = 0
        self.num_expected = 0

    def send(self, letter: _Letter) -> None:
        with self.changed:
            self.letters[self.num_sent] = letter
            self.num_sent += 1
            self.changed.notify_all()

    def expect(self) -> int:
        """Called when a receive starts: the number of the letter that it will get."""
        with self.changed:
            self.num_expected += 1
            return self.num_expected - 1

    def take(self, number: int, world: LocalWorld) -> _Letter:
        with self.changed:
            while not self.changed.wait_for(lambda: number in self.letters, _POLL_S):
                _check(world)
            return self.letters.pop(number)


class LocalTransport:
    """`Transport` over channels in memory. stream: of the thread that exchanges."""

    def __init__(self, world: LocalWorld, rank: int, stream: Stream | None = None) -> None:
        self.world = world
        self.rank = rank
        self.stream = stream or HostStream()

    def exchange(
        self, sends: Sequence[tuple[torch.Tensor, int]], receives: Sequence[tuple[torch.Tensor, int]]
    ) -> Exchange:
        letters = []
        written = self.stream.record()
        for tensor, dst in sends:
            letters.append(_Letter(tensor, written))
            self.world.channels[self.rank, dst].send(letters[-1])
        expected = [(tensor, src, self.world.channels[src, self.rank].expect()) for tensor, src in receives]
        return _LocalExchange(self, letters, expected)

    def shares_memory(self, other: int) -> bool:
        return True


class _LocalExchange:
    def __init__(
        self, transport: LocalTransport, letters: list[_Letter], expected: list[tuple[torch.Tensor, int, int]]
    ) -> None:
        self.transport = transport
        self.letters = letters
        self.expected = expected

    def wait(self) -> None:
        world, rank, stream = self.transport.world, self.transport.rank, self.transport.stream
        for tensor, src, number in self.expected:
            letter = world.channels[src, rank].take(number, world)
            assert letter.tensor.shape == tensor.shape and letter.tensor.dtype == tensor.dtype, (
                f"rank {src} sent {letter.tensor.dtype}{tuple(letter.tensor.shape)}, "
                f"rank {rank} expected {tensor.dtype}{tuple(tensor.shape)}"
            )
            stream.wait_for(letter.written)
            tensor.copy_(letter.tensor)
            letter.copied = stream.record()
            letter.read.set()
        for letter in self.letters:
            while not letter.read.wait(_POLL_S):
                _check(world)
            assert letter.copied is not None
            stream.wait_for(letter.copied)  # the tensor's memory is used again by what comes behind


def _check(world: LocalWorld) -> None:
    if world.given_up.is_set():
        raise EngineDeadError("another worker failed, so this one stops waiting for it")


class LocalTensorParallel:
    """`TensorParallelGroup` over threads: each lays its tensor on the table, then reads them all."""

    def __init__(self, world: LocalWorld, rank: int, stream: Stream | None = None) -> None:
        self.size = world.tp_size
        self.stream = stream or HostStream()
        self.tp_rank = rank % world.tp_size
        self.room = world.tp_rooms[rank // world.tp_size]

    def all_reduce_(self, tensor: torch.Tensor) -> torch.Tensor:
        parts = self._gather(tensor)
        # The same order on every rank, so that all ranks go on with bitwise equal activations.
        total = torch.stack(parts).sum(dim=0)
        self._meet_after_reading()
        return tensor.copy_(total)

    def all_gather_vocab(self, local_logits_EV: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        parts = self._gather(local_logits_EV)
        assert [part.shape[-1] for part in parts] == list(sizes)
        whole = torch.cat(parts, dim=-1)
        self._meet_after_reading()
        return whole

    def _gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        self.room.table[self.tp_rank] = tensor, self.stream.record()
        self._meet()
        entries = [entry for entry in self.room.table if entry is not None]
        for _, written in entries:
            self.stream.wait_for(written)
        return [part.to(tensor.device) for part, _ in entries]

    def _meet_after_reading(self) -> None:
        """Nobody writes into its tensor before all have read it."""
        self.room.read[self.tp_rank] = self.stream.record()
        self._meet()
        for read in self.room.read:
            assert read is not None
            self.stream.wait_for(read)

    def _meet(self) -> None:
        try:
            self.room.barrier.wait()
        except threading.BrokenBarrierError:
            raise EngineDeadError("another worker failed, so this one stops waiting for it") from None
