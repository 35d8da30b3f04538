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

from longspan.native.elementwise import NativeElementwise
from longspan.native.library import best_library

_MANY_ROWS = 32  # from here on our own copy is faster than torch's
_LARGE_PAGE = 2 << 20


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
        self._no_slots = torch.zeros(0, dtype=torch.int64, device=device)

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

    def held(self, residence: int, below: int) -> torch.Tensor:
        """Return the slots (int64) of the residence's tokens that are here, at positions below `below`; unordered."""
        holding = self.holdings.get(residence)
        return self._on_device(holding.below(below) if holding else np.zeros(0, dtype=np.int64))

    def allocate(self, residence: int, start: int, end: int) -> torch.Tensor:
        """Take slots (int64) for the tokens at positions [start, end) of the residence."""
        slots = self.free_slots.take(end - start)
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
            holding.append_one(position, slot)
        return self._on_device(slots)

    def _on_device(self, slots: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(slots)
        return tensor if self.device.type == "cpu" else tensor.to(self.device)

    def free(self, residence: int) -> None:
        """Give back every slot of the residence; none is fine."""
        holding = self.holdings.pop(residence, None)
        if holding:
            self.free_slots.give(holding.slots)

    def read(self, residence: int, ranges: Iterable[tuple[int, int]]) -> torch.Tensor:
        """Return [2, L, G, T, K]: keys and values of the token ranges, by position."""
        slots = self._on_device(self.holdings[residence].find(ranges))
        return torch.stack([self.k_LGNK.index_select(2, slots), self.v_LGNK.index_select(2, slots)])

    def insert(self, residence: int, ranges: Iterable[tuple[int, int]], kv_2LGTK: torch.Tensor) -> None:
        """Take in what `read` gave on another device."""
        slots = torch.cat([self.allocate(residence, start, end) for start, end in ranges])
        self.k_LGNK.index_copy_(2, slots, kv_2LGTK[0])
        self.v_LGNK.index_copy_(2, slots, kv_2LGTK[1])

    def release(self, residence: int, ranges: Iterable[tuple[int, int]]) -> None:
        """Give back the slots of these token ranges only."""
        holding = self.holdings[residence]
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
        return slots
