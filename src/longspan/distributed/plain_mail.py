"""The twin of csrc/mail.h, for machines without a compiler."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

import torch

from longspan.native.work import CurrentWork

_SPINS = 500  # rounds of waiting with a yield, about half a millisecond, before sleeping between looks
_NAP_S = 20e-6
_HEADING = struct.Struct("<qQ")  # the work's number, and the letter's bytes
_NOTHING = 65536  # bytes that are moved at once where nobody wants them


class PlainMail:
    """`Mail` of shared_memory.py. work: what the rank is at."""

    def __init__(self, work: CurrentWork) -> None:
        self.work = work
        self.outgoing: dict[int, _Channel] = {}
        self.incoming: dict[int, _Channel] = {}

    def connect(self, rank: int, written: int, read: int, buffer: int, capacity: int, *, outgoing: bool) -> None:
        self._side(outgoing)[rank] = _Channel(_Ring(written, read, buffer, capacity, outgoing=outgoing), outgoing)

    def connect_socket(self, rank: int, connection: socket.socket, *, outgoing: bool) -> None:
        self._side(outgoing)[rank] = _Channel(_Socket(connection, outgoing=outgoing), outgoing)

    def _side(self, outgoing: bool) -> dict[int, _Channel]:
        return self.outgoing if outgoing else self.incoming

    def exchange(
        self, sends: Sequence[tuple[torch.Tensor, int]], receives: Sequence[tuple[torch.Tensor, int]]
    ) -> _PlainExchange:
        letters = []
        for tensor, dst in sends:
            letters.append(_Letter(tensor, self.work.number))
            self.outgoing[dst].waiting.append(letters[-1])
            self.outgoing[dst].step()
        for tensor, src in receives:
            letters.append(_Letter(tensor, self.work.number))
            self.incoming[src].waiting.append(letters[-1])
        return _PlainExchange(self, letters)

    def step(self) -> bool:
        """Move what can be moved, anywhere; returns whether anything was."""
        moved = [channel.step() for channel in (*self.outgoing.values(), *self.incoming.values()) if channel.waiting]
        return any(moved)

    def drop(self) -> None:
        for channel in (*self.outgoing.values(), *self.incoming.values()):
            channel.drop()


class _PlainExchange:
    def __init__(self, mail: PlainMail, letters: list[_Letter]) -> None:
        self.mail = mail
        self.letters = letters

    def wait(self) -> None:
        idle = 0
        while not all(letter.done for letter in self.letters):
            if self.mail.step():
                idle = 0
                continue
            self.mail.work.check()
            if (idle := idle + 1) <= _SPINS:
                os.sched_yield()
            else:
                time.sleep(_NAP_S)


class _Letter:
    """A tensor on its way, or what is left of one that was dropped: None."""

    def __init__(self, tensor: torch.Tensor, work: int) -> None:
        self.bytes: torch.Tensor | None = tensor.view(-1).view(torch.uint8)
        self.size = tensor.nbytes
        self.work = work
        self.done = False


class _Way(Protocol):
    """What bytes of one direction are moved over; between `open` and `close`."""

    def open(self) -> None: ...

    def close(self) -> None: ...

    def move(self, data: torch.Tensor) -> int:
        """Move what can be moved of these bytes; how many they were."""
        ...


class _Ring:
    """Memory that both processes have mapped."""

    def __init__(self, written: int, read: int, buffer: int, capacity: int, *, outgoing: bool) -> None:
        self.written, self.read = (ctypes.c_uint64.from_address(address) for address in (written, read))
        self.buffer = torch.frombuffer((ctypes.c_uint8 * capacity).from_address(buffer), dtype=torch.uint8)
        self.capacity = capacity
        self.outgoing = outgoing
        self.at = self.room = 0

    def open(self) -> None:
        used = self.written.value - self.read.value
        self.at = self.written.value if self.outgoing else self.read.value
        self.room = self.capacity - used if self.outgoing else used

    def close(self) -> None:
        (self.written if self.outgoing else self.read).value = self.at

    def move(self, data: torch.Tensor) -> int:
        count = min(len(data), self.room)
        place = self.at % self.capacity
        first = min(count, self.capacity - place)
        for shared, ours in ((self.buffer[place : place + first], data[:first]),
                             (self.buffer[: count - first], data[first:count])):  # fmt: skip
            (shared if self.outgoing else ours).copy_(ours if self.outgoing else shared)
        self.at += count
        self.room -= count
        return count


class _Socket:
    """A connection to a process of another machine. One that is broken moves nothing more: its work is void soon."""

    def __init__(self, connection: socket.socket, *, outgoing: bool) -> None:
        self.connection = connection
        self.outgoing = outgoing

    def open(self) -> None:
        return

    def close(self) -> None:
        return

    def move(self, data: torch.Tensor) -> int:
        content, moved = data.numpy().data, 0
        with suppress(OSError):  # it would block, or is broken
            while moved < len(data):
                rest = content[moved:]
                flags = socket.MSG_DONTWAIT
                now = self.connection.send(rest, flags) if self.outgoing else self.connection.recv_into(rest, 0, flags)
                if now == 0:
                    break
                moved += now
        return moved


class _Channel:
    """One end of a stream of letters from one rank to another.

    waiting: what is still to be sent, or received, at this end, in order. headed: how many bytes of a heading are
    through, of the letter at the front, or of the next that has come. left: bytes of the letter at the front that are
    not through, once its heading is; None before. skipped: bytes to come that nobody wants.
    """

    def __init__(self, way: _Way, outgoing: bool) -> None:
        self.way = way
        self.is_outgoing = outgoing
        self.waiting: deque[_Letter] = deque()
        self.heading = torch.zeros(_HEADING.size, dtype=torch.uint8)
        self.headed = self.skipped = self.moved = 0
        self.left: int | None = None

    def step(self) -> bool:
        """Move what can be moved; whether anything was."""
        before = self.moved
        self.way.open()
        self._send() if self.is_outgoing else self._receive()
        self.way.close()
        return self.moved != before

    def drop(self) -> None:
        """Forget what waits: its memory is not touched any more. A letter under way goes on, of no content."""
        begun = self.is_outgoing and self.headed > 0 and bool(self.waiting)
        self.waiting = deque([self.waiting[0]] if begun else [])
        if begun:
            self.waiting[0].bytes = None
        elif self.left is not None:
            self.skipped = self.left
            self._end()

    def _send(self) -> None:
        while self.waiting:
            letter = self.waiting[0]
            if self.left is None:
                if self.headed == 0:
                    packed = bytearray(_HEADING.pack(letter.work, letter.size))
                    self.heading.copy_(torch.frombuffer(packed, dtype=torch.uint8))
                if not self._heading_is_through():
                    return
                self.left = letter.size
            if not self._finish(letter):
                return

    def _receive(self) -> None:
        while self.waiting and self._skip():
            letter = self.waiting[0]
            if self.left is None:
                if not self._heading_is_through():
                    return
                work, size = _HEADING.unpack(self.heading.numpy().tobytes())
                if work > letter.work:  # what is awaited here is void, as is about to be told
                    return
                if work < letter.work:
                    self.skipped = size
                    self._end()
                    continue
                assert size == letter.size, f"a letter of {size} bytes came, and one of {letter.size} was expected"
                self.left = size
            if not self._finish(letter):
                return

    def _heading_is_through(self) -> bool:
        self.headed += self._move(self.heading[self.headed :])
        return self.headed == _HEADING.size

    def _finish(self, letter: _Letter) -> bool:
        """Move what can be moved of the letter; whether that was the rest of it."""
        assert self.left is not None
        if letter.bytes is None:
            self.left = self._waste(self.left)
        else:
            self.left -= self._move(letter.bytes[letter.size - self.left :])
        if self.left:
            return False
        self._end()
        self.waiting.popleft().done = True
        return True

    def _skip(self) -> bool:
        """Whether all that nobody wants has come."""
        self.skipped = self._waste(self.skipped)
        return self.skipped == 0

    def _waste(self, count: int) -> int:
        """Move bytes of no content; how many are left."""
        while count:
            moved = self._move(torch.zeros(min(count, _NOTHING), dtype=torch.uint8))
            if not moved:
                break
            count -= moved
        return count

    def _move(self, data: torch.Tensor) -> int:
        moved = self.way.move(data) if len(data) else 0
        self.moved += moved
        return moved

    def _end(self) -> None:
        self.left, self.headed = None, 0
