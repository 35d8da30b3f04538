"""How much of the gap between LRU and Belady's order any order of eviction closes that knows the past alone.

    python -m benchmarks.policy.eviction_bound --traces DIR

Without a scheduler: the trace's blocks in one pool, request by request; leaves first. Beside LRU and the order that
knows when each block is asked for again (Belady), orders that know what no server does:

    counted     how often each block was asked for, all of them remembered (LFU; then LRU)
    posterior   the same, how many blocks are asked for how often in all, and how much of the trace is over: for
                documents that are drawn at random there is nothing else to know of the past
    hazards     how soon, and whether, blocks come to be used again that have as many uses, the last one as long ago:
                the best rate of hits a slot until any time to come (Gittins' index), with the distributions of the
                whole trace
    popularity  how often each block is asked for in all, past and future together: no order can know it
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import arguments, save, say
from benchmarks.policy.eviction import Cell, workload
from longspan.workload.traces import BLOCK_TOKENS, TraceRequest

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]
_MOST_USES = 8  # that hazards tell apart
_AGES = 28


class Past:
    """Of each block: how often it was used, and when last. asked: by block, the numbers of those that have it."""

    def __init__(self, requests: Sequence[TraceRequest]) -> None:
        self.requests = requests
        self.asked: dict[int, list[int]] = {}
        for number, request in enumerate(requests):
            for block in _blocks(request):
                self.asked.setdefault(block, []).append(number)
        size = 1 + max(self.asked)
        self.times = np.array([request.arrived_at_s or 0.0 for request in requests])
        self.number, self.uses = 0, np.zeros(size, dtype=np.int64)
        self.last = np.full(size, -1, dtype=np.int64)
        self.totals = np.zeros(size, dtype=np.int64)
        for block, numbers in self.asked.items():
            self.totals[block] = len(numbers)


class Order(ABC):
    """Those go first that are worth least; a block is worth no more than the one before it."""

    def __init__(self, past: Past) -> None:
        self.past = past

    @abstractmethod
    def worth(self, blocks: Numbers) -> Floats: ...


class Recent(Order):
    def worth(self, blocks: Numbers) -> Floats:
        return self.past.last[blocks].astype(np.float64)


class Counted(Order):
    def worth(self, blocks: Numbers) -> Floats:
        return self.past.uses[blocks] + self._late(blocks)

    def _late(self, blocks: Numbers) -> Floats:
        return self.past.last[blocks] / len(self.past.requests)


class Popularity(Counted):
    def worth(self, blocks: Numbers) -> Floats:
        return self.past.totals[blocks] + self._late(blocks)


class Posterior(Counted):
    """Of `total` uses each is over with the same chance, so how many are seen is binomial; of totals is known how many
    blocks have them."""

    def __init__(self, past: Past) -> None:
        super().__init__(past)
        counts = np.bincount(past.totals[past.totals > 0])
        self._totals = np.flatnonzero(counts)
        self._log_counts = np.log(counts[self._totals])
        self._log_factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, len(counts) + 1)))])

    def worth(self, blocks: Numbers) -> Floats:
        seen, where = np.unique(self.past.uses[blocks], return_inverse=True)
        left = np.array([self._left(number) for number in seen.tolist()])
        return np.unique(np.maximum.accumulate(left), return_inverse=True)[1][where] + self._late(blocks)

    def _left(self, seen: int) -> float:
        """Return how many uses are to come, on average, of a block that has so many."""
        over = (self.past.number + 1) / (len(self.past.requests) + 1)
        first = np.searchsorted(self._totals, seen)
        rest, logs = self._totals[first:] - seen, self._log_factorials
        chances = self._log_counts[first:] + logs[rest + seen] - logs[rest] + rest * np.log1p(-over)
        weights = np.exp(chances - np.max(chances))
        return float(np.sum(rest * weights) / np.sum(weights))


class Hazards(Order):
    def __init__(self, past: Past) -> None:
        super().__init__(past)
        span = float(past.times[-1])
        self._edges = np.concatenate([[0.0], np.geomspace(span / 1000.0, span, _AGES)])
        self._index = np.zeros((_MOST_USES + 1, len(self._edges)))
        events: list[list[tuple[float, bool]]] = [[] for _ in range(_MOST_USES + 1)]
        for numbers in past.asked.values():
            at = past.times[numbers]
            for place, begin in enumerate(at):
                is_used = place + 1 < len(at)
                gap = (at[place + 1] if is_used else span) - begin
                events[min(place + 1, _MOST_USES)].append((float(gap), is_used))
        for uses in range(1, _MOST_USES + 1):
            index = _gittins(self._edges, _survival(self._edges, events[uses]))
            older = np.maximum.accumulate(index[::-1])[::-1]
            self._index[uses] = np.maximum(older, self._index[uses - 1])

    def worth(self, blocks: Numbers) -> Floats:
        past = self.past
        ages = past.times[past.number] - past.times[past.last[blocks]]
        places = np.searchsorted(self._edges, ages, side="right") - 1
        uses = np.minimum(past.uses[blocks], _MOST_USES)
        worth: Floats = self._index[uses, places] + 1e-12 * past.last[blocks]
        return worth


class Belady(Order):
    def worth(self, blocks: Numbers) -> Floats:
        return np.array([-self._next(block) for block in blocks.tolist()])

    def _next(self, block: int) -> float:
        numbers = self.past.asked[block]
        while numbers and numbers[0] <= self.past.number:
            del numbers[0]
        return float(min(numbers, default=1 << 40))


ORDERS: dict[str, Callable[[Past], Order]] = {
    "lru": Recent, "counted": Counted, "posterior": Posterior, "hazards": Hazards, "popularity": Popularity,
    "belady": Belady,
}  # fmt: skip


def _blocks(request: TraceRequest) -> tuple[int, ...]:
    return request.prefix_block_ids[: request.num_prompt_tokens // BLOCK_TOKENS]


def _survival(edges: Floats, events: Sequence[tuple[float, bool]]) -> Floats:
    """Return which part is not used again by each age (Kaplan and Meier). events: an age, and whether it is a use."""
    places = np.searchsorted(edges, [age for age, _ in events], side="right") - 1
    used = np.array([is_used for _, is_used in events], dtype=bool)
    hits = np.bincount(places[used], minlength=len(edges))
    unknown = np.bincount(places[~used], minlength=len(edges))
    there = len(events) - np.concatenate([[0], np.cumsum(hits + unknown)[:-1]])
    stay = 1.0 - hits / np.maximum(there - unknown / 2.0, 1.0)
    return np.concatenate([[1.0], np.cumprod(np.maximum(stay, 0.0))[:-1]])


def _gittins(edges: Floats, survival: Floats) -> Floats:
    widths = np.diff(edges) * (survival[1:] + survival[:-1]) / 2.0
    index = np.zeros(len(edges))
    for place in range(len(widths)):
        index[place] = np.max((survival[place] - survival[place + 1 :]) / np.maximum(np.cumsum(widths[place:]), 1e-12))
    return index


def hit_rate(requests: Sequence[TraceRequest], pool: int, name: str) -> float:
    """Return the part of prompt tokens that is found. pool: blocks."""
    past = Past(requests)
    order = ORDERS[name](past)
    depths, cached = np.zeros(len(past.uses), dtype=np.int64), np.zeros(len(past.uses), dtype=bool)
    found, free = 0, pool
    for past.number, request in enumerate(requests):
        blocks = np.array(_blocks(request), dtype=np.int64)
        most = (request.num_prompt_tokens - 1) // BLOCK_TOKENS
        missing = np.flatnonzero(~cached[blocks])
        found += BLOCK_TOKENS * min(most, int(missing[0]) if len(missing) else len(blocks))
        lacking = len(missing) - free
        if lacking > 0:
            is_own = np.zeros(len(cached), dtype=bool)
            is_own[blocks] = True
            others = np.flatnonzero(cached & ~is_own)
            gone = others[np.lexsort((-depths[others], order.worth(others)))[:lacking]]
            cached[gone] = False
            free += len(gone)
        free -= len(missing)
        cached[blocks] = True
        past.uses[blocks] += 1
        past.last[blocks] = past.number
        depths[blocks] = np.arange(len(blocks))
    return found / sum([request.num_prompt_tokens for request in requests])


def main() -> None:
    options = arguments(
        __doc__ or "",
        [("traces", "", "folder of traces"), ("workloads", "leval,mooncake_conversation", "with commas"),
         ("pools", "0.0625,0.125,0.25,0.5", "parts of what the different blocks take, with commas"),
         ("requests", 0, "the first so many of each; 0: all"), ("rate", 2.0, "requests a second, without arrivals"),
         ("seeds", 3, "of all that is drawn"), ("name", "eviction_bound", "of the result; empty: none")],
    )  # fmt: skip
    cells: dict[str, Any] = {}
    for trace in options.workloads.split(","):
        for pool in [float(part) for part in options.pools.split(",")]:
            rates: dict[str, list[float]] = {name: [] for name in ORDERS}
            for seed in range(options.seeds):
                cell = Cell(trace, pool, "", options.traces, options.requests, BLOCK_TOKENS, options.rate, seed)
                requests = workload(cell)
                different = len({block for request in requests for block in request.prefix_block_ids})
                longest = max([request.num_tokens for request in requests]) / BLOCK_TOKENS
                for name, each in rates.items():
                    each.append(hit_rate(requests, round(max(pool * different, 1.5 * longest)), name))
            told = {name: mean(each) for name, each in rates.items()}
            gap = told["belady"] - told["lru"]
            closed = {name: (rate - told["lru"]) / gap for name, rate in told.items()}
            cells[f"{trace}, pool {pool:g}"] = {"hit_rate": told, "closed": closed}
            say(f"{trace}, {pool:g}: " + "; ".join(f"{name} {told[name]:.4f} ({closed[name]:.2f})" for name in told))
    if options.name:
        save(options.name, {"cells": cells})


if __name__ == "__main__":
    main()
