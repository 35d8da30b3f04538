"""Made conversations: each turn's prompt is all that was said before it, and something new.

Chats and agents differ in figures only: what they begin with, how much a turn adds, and how long it is until the next.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count

from longspan.workload.arrivals import poisson
from longspan.workload.traces import BLOCK_TOKENS, TraceRequest

_SESSIONS = 3_000_017  # of seeds: arrivals have others


@dataclass(frozen=True, slots=True, kw_only=True)
class Talk:
    """What sessions of a kind are like. Lengths are medians of LogNormal distributions, with this sigma, in tokens.

    beginnings: different system prompts, of which each session has one. beginning: their blocks of `BLOCK_TOKENS`.
    first, more: what the first turn, and each further one, adds to the prompt beside the answers so far. output: of an
    answer. turns: their mean number, geometrically distributed. think_s: the mean time from an answer's end to the next
    turn, exponentially distributed. token_s: an answer is supposed to take so long for each of its tokens.
    longest: tokens of a prompt with its answer; a session that would grow beyond ends.
    """

    beginnings: int
    beginning: int
    first: float
    more: float
    output: float
    sigma: float
    turns: float
    think_s: float
    token_s: float = 0.03
    longest: int = 120_000


CHATS = Talk(
    beginnings=8, beginning=2, first=150, more=80, output=250, sigma=1.0, turns=5.0, think_s=45.0, longest=30_000
)
AGENTS = Talk(beginnings=2, beginning=8, first=800, more=700, output=110, sigma=0.8, turns=25.0, think_s=3.0)


def sessions(rate: float, seed: int, talk: Talk = CHATS) -> Iterator[TraceRequest]:
    """Yield the turns of endlessly many sessions in order of arrival, with ids of their blocks; the same for a seed.

    rate: sessions that begin each second, Poisson. A server that is slower than `Talk` supposes gets the next turn all
    the same, as one of a recorded trace.
    """
    names = count()
    beginnings = [tuple([next(names) for _ in range(talk.beginning)]) for _ in range(talk.beginnings)]
    waiting: list[tuple[float, int, Iterator[TraceRequest], TraceRequest]] = []
    for number, begins_s in enumerate(poisson(rate, seed)):
        while waiting and waiting[0][0] <= begins_s:
            _, other, turns, request = heappop(waiting)
            yield request
            _push(waiting, other, turns)
        draw = random.Random((seed + _SESSIONS) * 1_000_003 + number)
        _push(waiting, number, _turns(talk, draw, begins_s, list(draw.choice(beginnings)), names))


def _push(
    waiting: list[tuple[float, int, Iterator[TraceRequest], TraceRequest]], number: int, turns: Iterator[TraceRequest]
) -> None:
    """Let a session wait for its next turn, if there is one."""
    if (request := next(turns, None)) is not None:
        heappush(waiting, (request.arrived_at_s or 0.0, number, turns, request))


def _turns(
    talk: Talk, draw: random.Random, begins_s: float, blocks: list[int], names: Iterator[int]
) -> Iterator[TraceRequest]:
    tokens, at_s, added = BLOCK_TOKENS * len(blocks), begins_s, talk.first
    while True:
        tokens += _length(draw, added, talk.sigma)
        output = _length(draw, talk.output, talk.sigma)
        if tokens + output > talk.longest:
            return
        blocks += [next(names) for _ in range(math.ceil(tokens / BLOCK_TOKENS) - len(blocks))]
        yield TraceRequest(at_s, tokens, output, tuple(blocks))
        if draw.random() < 1.0 / talk.turns:
            return
        tokens, added = tokens + output, talk.more
        at_s += talk.token_s * output + draw.expovariate(1.0 / talk.think_s)


def _length(draw: random.Random, median: float, sigma: float) -> int:
    return max(1, round(draw.lognormvariate(math.log(median), sigma)))
