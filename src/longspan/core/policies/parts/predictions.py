"""How much longer requests will go on. The true output length is not known before the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from longspan.core.books.request import Request
from longspan.core.state import SchedulerState

FIRST_GUESS = 512
"""Tokens that a request is expected to generate while none has finished, as in the released code."""
LEAST_LEFT = 10
"""A request that has reached the average is expected to generate this many more, or a tenth of what it has."""


@dataclass(frozen=True, slots=True)
class OutputLengths:
    """Expects every request to generate what the finished ones did on average (the released code's rule)."""

    average: float

    @classmethod
    def seen(cls, state: SchedulerState) -> OutputLengths:
        count, tokens = state.finished_outputs
        return cls((FIRST_GUESS + tokens) / (1 + count))

    def left(self, request: Request) -> int:
        """Return the tokens that the request will still generate; at least one."""
        done = request.num_output_tokens
        expected = self.average - done
        if expected < LEAST_LEFT or expected < done / 10:
            expected = max(LEAST_LEFT, done / 10)
        most = request.max_tokens - done
        return most if most < expected else int(expected)

    def growth(self, requests: Iterable[Request]) -> list[tuple[int, int]]:
        """Return of each: tokens that need KV now, and tokens of KV to come; the last token's is never stored."""
        left = self.left
        return [(request.num_prompt_tokens + request.num_output_tokens, left(request) - 1) for request in requests]


def peak_kv(requests: Iterable[tuple[int, int]]) -> int:
    """Return the most KV slots taken at any time from now, if no request is added.

    requests: (tokens that need KV now, tokens to come) of each. All grow by one an iteration; the peak is just
    before one ends: those alive then are the ones with most to come.
    """
    peak = held = 0
    for alive, (tokens, to_come) in enumerate(sorted(requests, key=lambda request: -request[1]), start=1):
        held += tokens
        peak = max(peak, held + alive * to_come)
    return peak


def longest_prefix(candidates: Sequence[object], fits: Callable[[int], bool]) -> int:
    """Return the most first candidates for which `fits(how many)` holds, if it holds for any fewer too."""
    low, high = 0, len(candidates)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
