"""Which request goes first: rules, by which the lowest does.

Each looks at a request as it stands now; nothing is kept from one decision to the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
N = TypeVar("N", float, Floats)


@dataclass(slots=True)  # not frozen, for that takes longer to make than the rest, and many are made
class Standing(Generic[N]):
    """A request that prefills, at one moment; or many, each a place in columns. Rules are elementwise, so they hold for
    both.

    arrived: time. deadline_s: seconds from then to when its first token is due. remaining_s, total_s: predicted seconds
    of what is left of its prefill, and of all of it but what was cached when it came, alone. scale_s: total_s, but
    never zero. tag: when it would end under processor sharing, on that one's clock; 0 where the rule does not use it.
    place: of its tenant, see `TenantShares`; 0 where tenants are all alike. promised_s: seconds from its arrival within
    which its first token is promised; 0 where that binds nobody.
    """

    now: float
    arrived: N
    deadline_s: N
    remaining_s: N
    total_s: N
    scale_s: N
    tag: N
    place: N
    promised_s: N

    @property
    def slack_s(self) -> N:
        """Seconds that it can stand still and meet its deadline yet."""
        return self.arrived + self.deadline_s - self.now - self.remaining_s

    @property
    def relative_slack(self) -> N:
        """rho: slack as a share of the whole work."""
        return self.slack_s / self.scale_s


def lars(standing: Standing[N]) -> N:
    """Rank by length-aware relative slack: the longer a request, the more slack counts as little."""
    return standing.relative_slack


def first_come(standing: Standing[N]) -> N:
    return standing.arrived


def earliest_deadline(standing: Standing[N]) -> N:
    return standing.arrived + standing.deadline_s


def shortest_remaining(standing: Standing[N]) -> N:
    return standing.remaining_s


def least_slack(standing: Standing[N]) -> N:
    return standing.slack_s
