"""What a larger pool would bring: how much of a trace's prompts a cache of any size finds, without simulating it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from longspan.config import SchedulerConfig
from longspan.workload.traces import BLOCK_TOKENS, TraceRequest

TIMES = (0.5, 1.0, 2.0, 4.0)
"""Sizes of pools that are compared, over that of the one at hand."""


class PoolSizes:
    """The part of a trace's prompt tokens that is found, over the slots of one pool that keeps what was used last.

    A block is found where no more tokens than there are slots have been asked for since it was asked for last
    (Mattson's stack distance, 1970), each of them once; of what goes on from each other that way, whole prefix blocks.
    Requests count in order of arrival, as if each was computed at
    once and the pool was only there to keep prefixes; so it is an estimate, whose differences tell what more slots
    bring.
    """

    def __init__(self, requests: Sequence[TraceRequest], prefix_block: int) -> None:
        """requests: whose trace tells the ids of their blocks; others count as never found. prefix_block: tokens of
        those in which prefixes are found."""
        self.num_tokens = sum([request.num_prompt_tokens for request in requests])
        found = sorted(_distances(requests, prefix_block))
        self._distances = [distance for distance, _ in found]
        self._tokens = [0, *accumulate([tokens for _, tokens in found])]

    @classmethod
    def of(cls, requests: Sequence[TraceRequest], config: SchedulerConfig) -> PoolSizes | None:
        """Return them where prefixes are kept, and the trace tells of any."""
        known = config.prefix_cache and any([request.prefix_block_ids for request in requests])
        return cls(requests, config.prefix_block) if known else None

    def table(self, slots: int) -> dict[float, float]:
        """Return by each of `TIMES` the part that so many times these slots find."""
        return {times: self.hit_rate(times * slots) for times in TIMES}

    def told(self, slots: int) -> str:
        """Return the same as half a sentence."""
        rates = self.table(slots)
        shown = ", ".join(f"{times:g} times {rate:.1%}" for times, rate in rates.items() if times != 1.0)
        return f"a pool that keeps what was used last finds {rates[1.0]:.1%} with these KV slots, with {shown}"

    def hit_rate(self, slots: float) -> float:
        """Return that part for a pool of so many slots, of all instances together."""
        return self._tokens[bisect_right(self._distances, slots)] / max(1, self.num_tokens)


def _distances(requests: Sequence[TraceRequest], prefix_block: int) -> list[tuple[int, int]]:
    """(Slots that it takes to find them, tokens) of each block that has come before."""
    uses = _Uses(sum([len(request.prefix_block_ids) for request in requests]))
    found = []
    for request in requests:
        most = request.num_prompt_tokens - 1  # a prompt's last token is always computed
        for place, block in enumerate(request.prefix_block_ids):
            begin, end = BLOCK_TOKENS * place, min(BLOCK_TOKENS * (place + 1), most)
            if (distance := uses.since(block)) is not None:
                found.append((distance, (end // prefix_block - begin // prefix_block) * prefix_block))
        for block in reversed(request.prefix_block_ids):  # so that its end goes before its beginning
            uses.note(block)
    return found


class _Uses:
    """When each block was used last: a Fenwick tree over the uses, of the blocks whose last use each was."""

    def __init__(self, most: int) -> None:
        self._tree = [0] * (most + 1)
        self._last: dict[int, int] = {}
        self._num_uses = 0

    def since(self, block: int) -> int | None:
        """Return the tokens of all blocks that were used since this one was, itself included; None: it never was."""
        place = self._last.get(block)
        if place is None:
            return None
        before, place = 0, place - 1
        while place:
            before += self._tree[place]
            place &= place - 1
        return BLOCK_TOKENS * (len(self._last) - before)

    def note(self, block: int) -> None:
        if (place := self._last.get(block)) is not None:
            self._add(place, -1)
        self._num_uses += 1
        self._last[block] = self._num_uses
        self._add(self._num_uses, 1)

    def _add(self, place: int, count: int) -> None:
        while place < len(self._tree):
            self._tree[place] += count
            place += place & -place
