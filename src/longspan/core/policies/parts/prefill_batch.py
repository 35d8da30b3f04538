"""A prefill batch: striped over a ring, its KV kept where a plan says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from longspan.core.actions import RunBatch
from longspan.core.books.request import Request
from longspan.core.policies.parts.sharing import share_evenly
from longspan.core.state import SchedulerState

Retention = Mapping[str, Sequence[tuple[int, int]]]
"""Request -> (instance, tokens) in token order."""


def run_prefill(state: SchedulerState, requests: Sequence[Request], ring: Sequence[int], plan: Retention) -> RunBatch:
    """Prefill all tokens of `requests`, each striped over the whole ring, kept as `plan` says."""
    ring = tuple(ring)
    segments = []
    for place, request in enumerate(requests):
        # Each request's stripes start elsewhere, so that remainders and last tokens do not all fall on one
        # instance.
        shift = place % len(ring)
        segments.append(state.prefill_segment(request, ring[shift:] + ring[:shift], plan[request.id]))
    return state.run_batch(ring, segments)


def keep_compactly(tokens: int, headroom: int, rooms: dict[int, int]) -> list[tuple[int, int]]:
    """Take `tokens + headroom` from `rooms`; returns (instance, how many of the tokens), in token order.

    All from the emptiest instance; what no instance can hold is split over the fewest that do, evenly, so that
    they share its attention.
    """
    emptiest = sorted(rooms, key=lambda number: (-rooms[number], number))
    fewest = 1
    while fewest < len(rooms) and sum(rooms[number] for number in emptiest[:fewest]) < tokens + headroom:
        fewest += 1
    kept = []
    shares = share_evenly(tokens + headroom, [rooms[number] for number in emptiest[:fewest]])
    for number, share in zip(emptiest, shares, strict=False):
        # The headroom is at the end of the last shares: there the last token is, and the next one will be.
        rooms[number] -= share
        share = min(share, tokens)
        tokens -= share
        if share:
            kept.append((number, share))
    return kept


def keep_evenly(tokens: int, rooms: dict[int, int]) -> list[tuple[int, int]]:
    """Take `tokens` from all `rooms`, as evenly as they allow; returns (instance, tokens), in token order."""
    shares = zip(list(rooms), share_evenly(tokens, list(rooms.values())), strict=True)
    kept = [(number, share) for number, share in shares if share]
    for number, share in kept:
        rooms[number] -= share
    return kept
