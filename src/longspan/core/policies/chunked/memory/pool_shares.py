"""A part of the pool is closed to large prompts, so that small ones always find room beside them.

Once large prompts have all the memory, whoever comes waits until one of them has generated its last token. What is
closed to them they only leave unused among themselves: small prompts may be anywhere. A large one that alone needs more
than is open gets it once no other large one is there.
"""

from __future__ import annotations

from dataclasses import dataclass

from longspan.core.books.request import Request
from longspan.core.state import SchedulerState

MEDIUM, LONG = 8192, 65_536
"""Tokens beyond which a prompt is medium, and long; in small pools it is less, see `PoolShares`."""
_MEDIUM_SHARE, _LONG_SHARE = 1 / 16, 1 / 4


@dataclass(frozen=True, slots=True)
class PoolShares:
    """closed_to_medium, closed_to_long: parts of the pool that prompts of that size, and larger ones, leave to others.

    A prompt is medium beyond `MEDIUM` tokens or a sixteenth of the pool, long beyond `LONG` or a quarter of it,
    whichever is less.
    """

    closed_to_medium: float = 0.0
    closed_to_long: float = 0.0

    def limits(self, total: int) -> list[tuple[float, float]]:
        """Return for each class the tokens beyond which a prompt is in it, and those that all such may hold."""
        classes = (
            (min(MEDIUM, _MEDIUM_SHARE * total), self.closed_to_medium),
            (min(LONG, _LONG_SHARE * total), self.closed_to_long),
        )
        return [(beyond, (1.0 - closed) * total) for beyond, closed in classes if closed]


class PoolUse:
    """What large prompts hold, or are about to, in one decision."""

    def __init__(self, state: SchedulerState, shares: PoolShares) -> None:
        self._limits = shares.limits(state.cluster.total_capacity)
        self._state = state
        self._held: list[float] | None = None
        self._least = min([beyond for beyond, _ in self._limits], default=float("inf"))
        self._kept_out = float("inf")

    def admits(self, request: Request, need: int) -> bool:
        """Tell whether a request may take so many slots now. Where one may not, none of its class may go before it."""
        if request.num_prompt_tokens <= self._least:
            return True
        if request.num_prompt_tokens > self._kept_out:
            return False
        for (beyond, most), held in zip(self._limits, self._use(), strict=True):
            if request.num_prompt_tokens > beyond and held and held + need > most:
                self._kept_out = min(self._kept_out, beyond)
                return False
        return True

    def take(self, request: Request, need: int) -> None:
        """Note that it takes so many."""
        if request.num_prompt_tokens > self._least:
            used = self._use()
            for place, (beyond, _) in enumerate(self._limits):
                used[place] += need * (request.num_prompt_tokens > beyond)

    def _use(self) -> list[float]:
        if self._held is None:
            holders = [request for request in self._state.with_kv() if request.num_prompt_tokens > self._least]
            slots = [(request.num_prompt_tokens, request.slots) for request in holders]
            self._held = [
                float(sum([held for prompt, held in slots if prompt > beyond])) for beyond, _ in self._limits
            ]
        return self._held
