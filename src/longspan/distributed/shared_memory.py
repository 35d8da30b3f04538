"""Exchange between processes of one machine, at the speed of memory: a ring buffer for each ordered pair of ranks.

A small gloo exchange costs about 0.1 ms, and a decode step over two instances makes two in each layer. Here it is a
copy into memory that both processes have mapped, and one out of it. A channel is a stream of bytes: both ends know
every size, so there are no headers, and messages may be larger than the buffer.

The two counters of a channel are written after the bytes that they count, which x86 keeps in order; other machines
use `process_group`.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch

from longspan.distributed.transport import Exchange, NothingToWaitFor
from longspan.native.library import best_library
from longspan.native.mail import NativeMail

CAPACITY = 16 << 20  # bytes of a channel's buffer; untouched pages cost nothing
_COUNTER_BYTES, _CACHE_LINE = 4096, 64  # one page: the counters lie a cache line apart in it
_SPINS = 500  # rounds of waiting with a yield, about half a millisecond, before sleeping between looks
_NAP_S = 20e-6


def usable() -> bool:
    """Tell whether this machine has what it takes."""
    return platform.machine() == "x86_64" and os.path.isdir("/dev/shm")


class Mail(Protocol):
    """One rank's ends of all channels. There are two: one in C++ (csrc/mail.h), and its twin below."""

    def connect(self, rank: int, written: int, read: int, buffer: int, capacity: int, *, outgoing: bool) -> None:
        """Return the channel to or from `rank`: addresses of its counters and of its buffer."""
        ...

    def exchange(
        self, sends: Sequence[tuple[torch.Tensor, int]], receives: Sequence[tuple[torch.Tensor, int]]
    ) -> Exchange:
        """Exchange as `Transport.exchange` does."""
        ...


class SharedMemoryTransport:
    """`Transport` over channels in a folder that all ranks of the world use.

    The folder may go once every rank has made its transport; the memory then goes with the processes.
    """

    def __init__(
        self, folder: Path | str, rank: int, world_size: int, capacity: int = CAPACITY, mail: Mail | None = None
    ) -> None:
        self.rank = rank
        self.mail = mail or _best_mail()
        self.memory: list[torch.Tensor] = []
        for other in range(world_size):
            if other != rank:
                self._connect(Path(folder, f"{rank}-to-{other}"), other, capacity, outgoing=True)
                self._connect(Path(folder, f"{other}-to-{rank}"), other, capacity, outgoing=False)

    def exchange(
        self, sends: Sequence[tuple[torch.Tensor, int]], receives: Sequence[tuple[torch.Tensor, int]]
    ) -> Exchange:
        return self.mail.exchange(sends, receives) if sends or receives else NothingToWaitFor()

    def _connect(self, path: Path, other: int, capacity: int, *, outgoing: bool) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(descriptor, _COUNTER_BYTES + capacity)
            memory = torch.frombuffer(mmap.mmap(descriptor, _COUNTER_BYTES + capacity), dtype=torch.uint8)
        finally:
            os.close(descriptor)
        self.memory.append(memory)  # keeps the mapping
        begin = memory.data_ptr()
        self.mail.connect(other, begin, begin + _CACHE_LINE, begin + _COUNTER_BYTES, capacity, outgoing=outgoing)


def _best_mail() -> Mail:
    library = best_library()
    return NativeMail(library) if library else PlainMail()


class PlainMail:
    """The twin of csrc/mail.h, for machines without a compiler."""

    def __init__(self) -> None:
        self.outgoing: dict[int, _Channel] = {}
        self.incoming: dict[int, _Channel] = {}

    def connect(self, rank: int, written: int, read: int, buffer: int, capacity: int, *, outgoing: bool) -> None:
        (self.outgoing if outgoing else self.incoming)[rank] = _Channel(written, read, buffer, capacity)

    def exchange(
        self, sends: Sequence[tuple[torch.Tensor, int]], receives: Sequence[tuple[torch.Tensor, int]]
    ) -> Exchange:
        stretches = []
        for tensor, dst in sends:
            stretches.append(_Stretch(tensor))
            self.outgoing[dst].waiting.append(stretches[-1])
            self.outgoing[dst].send_some()
        for tensor, src in receives:
            stretches.append(_Stretch(tensor))
            self.incoming[src].waiting.append(stretches[-1])
        return _PlainExchange(self, stretches)

    def step(self) -> bool:
        """Move what can be moved, anywhere; returns whether anything was."""
        moved = False
        for channel in self.outgoing.values():
            if channel.waiting:
                moved |= channel.send_some()
        for channel in self.incoming.values():
            if channel.waiting:
                moved |= channel.receive_some()
        return moved


class _PlainExchange:
    def __init__(self, mail: PlainMail, stretches: list[_Stretch]) -> None:
        self.mail = mail
        self.stretches = stretches

    def wait(self) -> None:
        idle = 0
        while any(stretch.left for stretch in self.stretches):
            if self.mail.step():
                idle = 0
            elif (idle := idle + 1) <= _SPINS:
                os.sched_yield()
            else:
                time.sleep(_NAP_S)


class _Channel:
    """One end of a stream of bytes from one rank to another.

    waiting: what is still to be sent, or received, at this end, in order.
    """

    def __init__(self, written: int, read: int, buffer: int, capacity: int) -> None:
        self.written, self.read = (ctypes.c_uint64.from_address(address) for address in (written, read))
        self.buffer = torch.frombuffer((ctypes.c_uint8 * capacity).from_address(buffer), dtype=torch.uint8)
        self.capacity = capacity
        self.waiting: deque[_Stretch] = deque()

    def send_some(self) -> bool:
        """Copy in as much as there is room for; whether any was."""
        written = self.written.value
        moved = self._move(written, self.capacity - (written - self.read.value), inward=True)
        self.written.value = written + moved
        return moved > 0

    def receive_some(self) -> bool:
        """Copy out as much as is there; whether any was."""
        read = self.read.value
        moved = self._move(read, self.written.value - read, inward=False)
        self.read.value = read + moved
        return moved > 0

    def _move(self, at: int, limit: int, *, inward: bool) -> int:
        left = limit
        while self.waiting and left:
            stretch = self.waiting[0]
            place = (at + limit - left) % self.capacity
            count = min(left, self.capacity - place, stretch.left)
            ours, shared = stretch.next(count), self.buffer[place : place + count]
            if inward:
                shared.copy_(ours)
            else:
                ours.copy_(shared)
            left -= count
            if not stretch.left:
                self.waiting.popleft()
        return limit - left


class _Stretch:
    """The bytes of one tensor, and how far they are."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.bytes = tensor.view(-1).view(torch.uint8)
        self.done = 0

    @property
    def left(self) -> int:
        return len(self.bytes) - self.done

    def next(self, count: int) -> torch.Tensor:
        self.done += count
        return self.bytes[self.done - count : self.done]


class SharedMemoryTensorParallel:
    """`TensorParallelGroup` over the same channels: each rank sends to each, and adds up in rank order.

    So all ranks get bitwise equal sums. Instances of a CPU machine have few devices each.
    """

    def __init__(self, transport: SharedMemoryTransport, tp_size: int) -> None:
        self.transport = transport
        self.size = tp_size
        first = transport.rank // tp_size * tp_size
        self.ranks = range(first, first + tp_size)

    def all_reduce_(self, tensor: torch.Tensor) -> torch.Tensor:
        parts = self._gather(tensor, [tensor.shape] * self.size)
        total = parts[0].float()
        for part in parts[1:]:
            total = total + part
        return tensor.copy_(total)

    def all_gather_vocab(self, local_logits_EV: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        rows = local_logits_EV.shape[0]
        return torch.cat(self._gather(local_logits_EV, [(rows, size) for size in sizes]), dim=-1)

    def _gather(self, tensor: torch.Tensor, shapes: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Everyone's tensor, in rank order."""
        mine = tensor.contiguous()
        parts = {rank: mine.new_empty(shape) for rank, shape in zip(self.ranks, shapes, strict=True)}
        parts[self.transport.rank] = mine
        peers = [rank for rank in self.ranks if rank != self.transport.rank]
        self.transport.exchange([(mine, rank) for rank in peers], [(parts[rank], rank) for rank in peers]).wait()
        return list(parts.values())
