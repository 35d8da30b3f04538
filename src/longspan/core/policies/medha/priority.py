"""Who goes first: rules, by which the lowest does.

Each looks at a request as it stands now; nothing is kept from one decision to the next.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Standing:
    """A request that prefills, at one moment.

    arrived: time. deadline_s: seconds from then to when its first token is due. remaining_s, total_s: predicted seconds
    of what is left of its prefill, and of all of it, alone.
    """

    now: float
    arrived: float
    deadline_s: float
    remaining_s: float
    total_s: float

    @property
    def slack_s(self) -> float:
        """Seconds that it can stand still and meet its deadline yet."""
        return self.arrived + self.deadline_s - self.now - self.remaining_s

    @property
    def relative_slack(self) -> float:
        """rho: slack as a share of the whole work."""
        return self.slack_s / max(self.total_s, 1e-9)


def lars(standing: Standing) -> float:
    """Length-aware relative slack: the longer a request, the more slack counts as little."""
    return standing.relative_slack


def first_come(standing: Standing) -> float:
    return standing.arrived


def earliest_deadline(standing: Standing) -> float:
    return standing.arrived + standing.deadline_s


def shortest_remaining(standing: Standing) -> float:
    return standing.remaining_s


def least_slack(standing: Standing) -> float:
    return standing.slack_s
