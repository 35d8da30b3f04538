"""One device's part of the KV pool: slots of one token each, and which residence's tokens are in them.

The scheduler counts tokens; the pool picks slots. Shapes: L layers, G KV heads, N slots, K head_dim, T tokens.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from longspan.attention.slots import Earlier
from longspan.native.elementwise import NativeElementwise
from longspan.native.library import best_library

_MANY_ROWS = 32  # from here on our own copy is faster than torch's
_LARGE_PAGE = 2 << 20
_MOST_JOINED = 256  # requests that decode behind an adopted prefix
_NONE = np.zeros(0, dtype=np.int64)


class KVPool:
    """KV of any tokens of any residences, token by token.

    The layout is [L, G, N, K] for keys and for values: the keys of one head lie side by side, as the attention
    kernels read them.
    """

    def __init__(
        self, layers: int, kv_heads: int, slots: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.k_LGNK, self.v_LGNK = (_zeros((layers, kv_heads, slots, head_dim), dtype, device) for _ in range(2))
        self.device = device
        library = best_library() if device.type == "cpu" else None
        self._native = NativeElementwise(library) if library else None
        self.free_slots = _FreeSlots(slots)
        self.holdings: dict[int, _Holding] = {}
        self._joined: dict[int, _Joined] = {}
        self._seen_to: dict[int, int] = {}  # by residence, up to where its tokens are joined with later ones
        self._no_slots = torch.zeros(0, dtype=torch.int64, device=device)

    @property
    def num_used(self) -> int:
        """Slots that are taken; any thread may ask."""
        return len(self.free_slots.stack) - self.free_slots.size

    def layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return k_GNK and v_GNK of the layer."""
        return self.k_LGNK[layer], self.v_LGNK[layer]

    def write(self, layer: int, slots: torch.Tensor, k_TGK: torch.Tensor, v_TGK: torch.Tensor) -> None:
        """Put the KV of T tokens into T slots."""
        if self._native and len(slots) >= _MANY_ROWS:
            self._native.write_slots(self.k_LGNK[layer], slots, k_TGK)
            self._native.write_slots(self.v_LGNK[layer], slots, v_TGK)
            return
        self.k_LGNK[layer].index_copy_(1, slots, k_TGK.transpose(0, 1))
        self.v_LGNK[layer].index_copy_(1, slots, v_TGK.transpose(0, 1))

    def held(self, residence: int, below: int, earlier: Earlier = ()) -> torch.Tensor:
        """Return the slots (int64) of the residence's tokens that are here, at positions below `below`; unordered.

        earlier: (residence, length) of those that its request refers to before it; with their tokens.
        """
        own = self._below(residence, below)
        if not earlier:
            return self._on_device(own)
        holding = self.holdings.get(residence)
        if holding and holding.end > below:
            return self._on_device(np.concatenate([*[self._below(number, end) for number, end in earlier], own]))
        joined = self._joined.pop(residence, None)
        if joined is None or joined.earlier != earlier:
            joined = _Joined(earlier, [self._below(number, end) for number, end in earlier])
            for number, end in earlier:
                self._seen_to[number] = max(end, self._seen_to.get(number, 0))
        self._joined[residence] = joined  # as the last that was asked for
        while len(self._joined) > _MOST_JOINED:
            del self._joined[next(iter(self._joined))]
        return self._on_device(joined.with_own(own))

    def _below(self, residence: int, position: int) -> np.ndarray:
        holding = self.holdings.get(residence)
        return holding.below(position) if holding else _NONE

    def _changed(self, residence: int) -> None:
        """Note that the residence has not only grown at its end."""
        self._seen_to.pop(residence, None)
        for own, joined in list(self._joined.items()):
            if own == residence or any([number == residence for number, _ in joined.earlier]):
                del self._joined[own]

    def allocate(self, residence: int, start: int, end: int) -> torch.Tensor:
        """Take slots (int64) for the tokens at positions [start, end) of the residence."""
        slots = self.free_slots.take(end - start)
        if start < self._seen_to.get(residence, 0):  # lost tokens, which are computed again
            self._changed(residence)
        self.holdings.setdefault(residence, _Holding()).append(start, end, slots)
        return self._on_device(slots)

    def allocate_each(self, tokens: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Take slots (int64), one for each (residence, position): what `allocate` gives to each in turn."""
        if not tokens:
            return self._no_slots
        slots = self.free_slots.take(len(tokens))
        for (residence, position), slot in zip(tokens, slots, strict=True):
            holding = self.holdings.get(residence)
            if holding is None:
                holding = self.holdings[residence] = _Holding()
            if position < self._seen_to.get(residence, 0):
                self._changed(residence)
            holding.append_one(position, slot)
        return self._on_device(slots)

    def _on_device(self, slots: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(slots)
        return tensor if self.device.type == "cpu" else tensor.to(self.device)

    def free(self, residence: int) -> None:
        """Give back every slot of the residence; none is fine."""
        holding = self.holdings.pop(residence, None)
        self._changed(residence)
        if holding:
            self.free_slots.give(holding.slots)

    def read(self, residence: int, ranges: Iterable[tuple[int, int]]) -> torch.Tensor:
        """Return [2, L, G, T, K]: keys and values of the token ranges, by position."""
        slots = self._on_device(self.holdings[residence].find(ranges))
        return torch.stack([self.k_LGNK.index_select(2, slots), self.v_LGNK.index_select(2, slots)])

    def insert(self, residence: int, ranges: Iterable[tuple[int, int]], kv_2LGTK: torch.Tensor) -> None:
        """Take in what `read` gave on another device."""
        self._changed(residence)
        slots = torch.cat([self.allocate(residence, start, end) for start, end in ranges])
        self.k_LGNK.index_copy_(2, slots, kv_2LGTK[0])
        self.v_LGNK.index_copy_(2, slots, kv_2LGTK[1])

    def release(self, residence: int, ranges: Iterable[tuple[int, int]]) -> None:
        """Give back the slots of these token ranges only."""
        holding = self.holdings[residence]
        self._changed(residence)
        self.free_slots.give(holding.remove(ranges))
        if not len(holding.slots):
            del self.holdings[residence]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeroed: memory is really there before the first request asks for it.

    On a CPU in large pages where Linux has them: a decode step walks through whole contexts, and its page tables with
    them.
    """
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < _LARGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape).zero_()


class _FreeSlots:
    """A stack of free slots. Fresh ones come in ascending order, so that a lone request's slots are consecutive."""

    def __init__(self, size: int) -> None:
        self.stack = np.arange(size - 1, -1, -1, dtype=np.int64)
        self.size = size

    def take(self, count: int) -> np.ndarray:
        assert count <= self.size, f"{count} slots wanted, {self.size} free: the scheduler counted wrong"
        taken = self.stack[self.size - count : self.size][::-1].copy()
        self.size -= count
        return taken

    def give(self, slots: np.ndarray) -> None:
        self.stack[self.size : self.size + len(slots)] = slots[::-1]
        self.size += len(slots)


class _Holding:
    """Positions and slots of one residence's tokens, in arrays that grow by doubling.

    end: no position is at it or behind.
    """

    def __init__(self) -> None:
        self._table = np.empty((2, 64), dtype=np.int64)
        self._count = 0
        self.end = 0

    @property
    def positions(self) -> np.ndarray:
        return self._table[0, : self._count]

    @property
    def slots(self) -> np.ndarray:
        return self._table[1, : self._count]

    def append(self, start: int, end: int, slots: np.ndarray) -> None:
        count = self._count + end - start
        self._make_room(count)
        self._table[0, self._count : count] = np.arange(start, end)
        self._table[1, self._count : count] = slots
        self._count = count
        self.end = max(self.end, end)

    def append_one(self, position: int, slot: int) -> None:
        count = self._count
        self._make_room(count + 1)
        table = self._table
        table[0, count] = position
        table[1, count] = slot
        self._count = count + 1
        if position >= self.end:
            self.end = position + 1

    def _make_room(self, count: int) -> None:
        if count > self._table.shape[1]:
            grown = np.empty((2, max(count, 2 * self._table.shape[1])), dtype=np.int64)
            grown[:, : self._count] = self._table[:, : self._count]
            self._table = grown

    def below(self, position: int) -> np.ndarray:
        """Slots of the tokens before the position: mostly all."""
        return self.slots if self.end <= position else self.slots[self.positions < position]

    def find(self, ranges: Iterable[tuple[int, int]]) -> np.ndarray:
        """Slots of the token ranges, by position within each range."""
        order = np.argsort(self.positions)
        wanted = np.concatenate([np.arange(start, end) for start, end in ranges])
        index = order[np.searchsorted(self.positions[order], wanted)]
        assert (self.positions[index] == wanted).all(), "tokens that are not here were asked for"
        return self.slots[index]

    def remove(self, ranges: Iterable[tuple[int, int]]) -> np.ndarray:
        gone = np.zeros(self._count, dtype=bool)
        for start, end in ranges:
            gone |= (self.positions >= start) & (self.positions < end)
        slots = self.slots[gone].copy()
        kept = self._table[:, : self._count][:, ~gone]
        self._count = kept.shape[1]
        self._table[:, : self._count] = kept
        self.end = int(kept[0].max()) + 1 if self._count else 0
        return slots


class _Joined:
    """Slots of a request's tokens in several residences, in one array that grows with the last of them.

    num_own: how many of that one's are in it, its first ones: while it only grows it need not be copied again.
    """

    def __init__(self, earlier: Earlier, slots: Sequence[np.ndarray]) -> None:
        self.earlier = earlier
        self._begin = sum(map(len, slots))
        self._table = np.empty(self._begin + 64, dtype=np.int64)
        np.concatenate(slots, out=self._table[: self._begin])
        self.num_own = 0

    def with_own(self, own: np.ndarray) -> np.ndarray:
        end, known = self._begin + len(own), self._begin + self.num_own
        if end > len(self._table):
            grown = np.empty(max(end, 2 * len(self._table) - self._begin), dtype=np.int64)
            grown[:known] = self._table[:known]
            self._table = grown
        self._table[known:end] = own[self.num_own :]
        self.num_own = len(own)
        return self._table[:end]
