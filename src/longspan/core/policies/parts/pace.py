"""How long a request that decodes may wait for its next token: of one, or of many in columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
N = TypeVar("N", float, Floats)

_DEBT = 0.35
"""Of a TPOT: so far may a request that has just begun to decode fall behind; three tokens later its mean is kept."""
CATCHING_UP = 0.7
"""Of its pace: the gaps of one that is behind; in longer ones none gets ahead in good time."""


class Gaps(NamedTuple):
    """Seconds in which a request that decodes should get its next token, by its own TPOT.

    pace_s: its share of that TPOT. chunk_s: beside chunks of single instances. team_s: beside a team's.
    """

    pace_s: float
    chunk_s: float
    team_s: float

    def tightest(self, other: Gaps) -> Gaps:
        """Return the least of each."""
        return Gaps(*map(min, self, other))


@dataclass(frozen=True, slots=True)
class Pace:
    """aim, burst, team_burst: see the options of the policies."""

    aim: float
    burst: float
    team_burst: float

    def left(self, tpot_s: N, tokens: N, since_s: N) -> N:
        """Return the seconds until a request falls behind its pace without another token.

        tokens: that it has generated. since_s: seconds since the first of these.
        """
        each_s, debt_s = self.line(tpot_s)
        return each_s * tokens + debt_s - since_s

    def line(self, tpot_s: N) -> tuple[N, N]:
        """Return what `left` grows by with each token, and what it is without any."""
        return self.aim * tpot_s, _DEBT * tpot_s

    def gaps(self, tpot_s: float, left_s: float) -> Gaps:
        """Return a request's gaps: its pace; more as long as it is ahead of that, for larger and fewer chunks."""
        return Gaps(*self._gaps(tpot_s, left_s, min, max))

    def tightest(self, tpot_s: Floats, tokens: Floats, since_s: Floats) -> Gaps:
        """Return the least gaps of many requests, each a place in columns."""
        left_s = self.left(tpot_s, tokens, since_s)
        return Gaps(*[float(gaps.min()) for gaps in self._gaps(tpot_s, left_s, np.minimum, np.maximum)])

    def _gaps(
        self, tpot_s: N, left_s: N, least: Callable[[N, N], N], most: Callable[[N, N], N]
    ) -> tuple[N, N, N]:
        """Return what `Gaps` names. least, most: of two each, place by place in columns."""
        pace_s = gap_s = self.aim * tpot_s
        if self.burst > 1.0:
            gap_s = least(most(left_s, CATCHING_UP * pace_s), self.burst * pace_s)
        return pace_s, gap_s, most(gap_s, least(left_s, self.team_burst * pace_s))
