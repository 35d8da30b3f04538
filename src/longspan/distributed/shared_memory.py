"""Exchange between processes of one machine, at the speed of memory: a ring buffer for each ordered pair of ranks.

A small gloo exchange costs about 0.1 ms, and a decode step over two instances makes two in each layer. Here it is a
copy into memory that both processes have mapped, and one out of it. A channel is a stream of letters, which may be
larger than the buffer. A heading of 16 bytes says what work each belongs to (native/work.py). Where work becomes void
its ranks leave it at different places; what some of them have sent for it is older than what is awaited next, and is
skipped. A rank that comes in place of another has channels of its own, to which the others link anew.

The two counters of a channel are written after the bytes that they count, which x86 keeps in order; other machines
use `process_group`.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import platform
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import torch

from longspan.distributed.plain_mail import PlainMail
from longspan.distributed.transport import Exchange, NothingToWaitFor
from longspan.native.library import best_library
from longspan.native.mail import NativeMail
from longspan.native.work import CurrentWork

CAPACITY = 16 << 20  # bytes of a channel's buffer; untouched pages cost nothing
_COUNTER_BYTES, _CACHE_LINE = 4096, 64  # one page: the counters lie a cache line apart in it


def usable() -> bool:
    """Tell whether this machine has what it takes."""
    return platform.machine() == "x86_64" and sys.platform == "linux"


class Mail(Protocol):
    """One rank's ends of all channels. There are two: one in C++ (csrc/mail.h), and its twin below."""

    def connect(self, rank: int, written: int, read: int, buffer: int, capacity: int, *, outgoing: bool) -> None:
        """Take the channel to or from `rank`, in place of one before: addresses of its counters and of its buffer."""
        ...

    def connect_socket(self, rank: int, connection: socket.socket, *, outgoing: bool) -> None:
        """Take the channel to or from `rank`, in place of one before: over a connection, which stays the caller's."""
        ...

    def exchange(
        self, sends: Sequence[tuple[torch.Tensor, int]], receives: Sequence[tuple[torch.Tensor, int]]
    ) -> Exchange:
        """Exchange as `Transport.exchange` does. Its `wait` raises WorkVoidError."""
        ...

    def drop(self) -> None:
        """Leave all exchanges as they are: their tensors are not touched any more."""
        ...


class SharedMemoryTransport:
    """`Transport` over channels in memory that all ranks of the world map.

    place: where they open it, which they need not once every rank has made its transport; the memory then goes with the
    processes. work: what this rank is at, which its letters tell, and which ends its waiting where it is void.
    """

    def __init__(
        self, place: Path | str, rank: int, world_size: int, capacity: int = CAPACITY,
        work: CurrentWork | None = None, make_mail: Callable[[CurrentWork], Mail] | None = None,
    ) -> None:  # fmt: skip
        self.rank = rank
        self.capacity = capacity
        self.work = work or CurrentWork()
        self.mail = (make_mail or _best_mail)(self.work)
        self._mapped: dict[tuple[int, int], mmap.mmap] = {}
        for other in range(world_size):
            if other != rank:
                self.link(place, other)

    def link(self, place: Path | str, other: int) -> None:
        """Exchange with another rank through the channels in this place from now on: it may be in place of one that
        is lost. There is no exchange under way with it."""
        descriptor = os.open(place, os.O_RDWR)
        try:
            for pair in ((self.rank, other), (other, self.rank)):
                self._connect(descriptor, pair)
        finally:
            os.close(descriptor)

    def exchange(
        self, sends: Sequence[tuple[torch.Tensor, int]], receives: Sequence[tuple[torch.Tensor, int]]
    ) -> Exchange:
        return self.mail.exchange(sends, receives) if sends or receives else NothingToWaitFor()

    def shares_memory(self, other: int) -> bool:
        return True

    def drop(self) -> None:
        """Leave what is under way as it is, since its work is void."""
        self.mail.drop()

    def _connect(self, place: int, pair: tuple[int, int]) -> None:
        size = -(-(_COUNTER_BYTES + self.capacity) // mmap.PAGESIZE) * mmap.PAGESIZE
        begin = _number(*pair) * size
        _grow(place, begin + size)
        mapped = mmap.mmap(place, size, offset=begin)
        address, outgoing = torch.frombuffer(mapped, dtype=torch.uint8).data_ptr(), pair[0] == self.rank
        self.mail.connect(
            pair[outgoing], address, address + _CACHE_LINE, address + _COUNTER_BYTES, self.capacity, outgoing=outgoing
        )
        before = self._mapped.get(pair)
        if before is not None:  # of a rank that is lost: others may map the same place, so its pages would stay
            with suppress(OSError):
                before.madvise(mmap.MADV_REMOVE)
        self._mapped[pair] = mapped


def _number(sender: int, receiver: int) -> int:
    """Return which of all channels is that of the pair: the same however many ranks there are."""
    low, high = sorted((sender, receiver))
    return high * (high - 1) + 2 * low + (sender == high)


def _grow(place: int, size: int) -> None:
    """Let it be so many bytes at least; other ranks may be at the same."""
    fcntl.flock(place, fcntl.LOCK_EX)
    try:
        if os.fstat(place).st_size < size:
            os.ftruncate(place, size)
    finally:
        fcntl.flock(place, fcntl.LOCK_UN)


def _best_mail(work: CurrentWork) -> Mail:
    library = best_library()
    return NativeMail(library, work) if library else PlainMail(work)


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
