"""What instances cost each other that do not even work together: those of one host share its memory and its power.

While two of them are at work, each gets on at 1 / factor of its pace. What begins, ends or is slowed down changes when
the rest ends, so ends are known only once they have come.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from longspan.core.actions import MigrateKV, RunBatch
from longspan.core.costs.episode import Company
from longspan.sib import MeasuredInterference
from longspan.simulator.usage import kind_of


@dataclass(frozen=True, slots=True)
class Interference:
    """The slowdown of instances that share a host.

    factors: how much longer an iteration takes beside another instance's, by its kind and the other's.
    """

    factors: dict[tuple[Company, Company], float]

    @classmethod
    def of(cls, measured: Iterable[MeasuredInterference]) -> Interference | None:
        """Return what was measured; None if nothing was."""
        found = {(one.kind, one.beside): max(1.0, one.factor) for one in measured}
        return cls(found) if found else None


@dataclass(slots=True, eq=False)
class _Work:
    """Seconds; end_s as far as it is known now."""

    instances: frozenset[int]
    company: Company
    begin_s: float
    end_s: float


class Neighbours:
    """Batches and migrations under way, on instances that slow each other down.

    free_at_s: of each instance, when all that it has is done; kept true when something takes longer.
    """

    def __init__(self, interference: Interference, free_at_s: list[float]) -> None:
        self._factors = interference.factors
        self._free_at_s = free_at_s
        self._under_way: dict[int, _Work] = {}

    def begin(self, action: RunBatch | MigrateKV, instances: tuple[int, ...], begin_s: float, seconds: float) -> float:
        """Begin work that would take so long alone; returns when it ends unless other work begins."""
        work = _Work(frozenset(instances), _company(action), begin_s, begin_s + seconds)
        others = [
            other for other in self._under_way.values()
            if other.end_s > begin_s and work.instances.isdisjoint(other.instances)
        ]  # fmt: skip
        # As if they all stayed to the end, which is right for those that outlast it, and no matter for the others.
        work.end_s += seconds * sum(self._factor(work, other) - 1.0 for other in others)
        for other in others:
            self._put_off(other, self._delay(other, work, other.end_s - max(begin_s, other.begin_s)))
        work.end_s = begin_s + seconds + sum(self._delay(work, other, seconds) for other in others)
        self._under_way[id(action)] = work
        return work.end_s

    def end_s(self, action: RunBatch | MigrateKV) -> float:
        """Return its end, as it is known now."""
        return self._under_way[id(action)].end_s

    def finish(self, action: RunBatch | MigrateKV) -> None:
        """Note that it has come to its end."""
        del self._under_way[id(action)]

    def _delay(self, work: _Work, other: _Work, left_s: float) -> float:
        """How much longer `work` takes, which has so much left when the two meet, for the other's being there."""
        factor = self._factor(work, other)
        together_s = max(0.0, other.end_s - max(work.begin_s, other.begin_s))
        return min(left_s * (factor - 1.0), together_s * (1.0 - 1.0 / factor))

    def _factor(self, work: _Work, other: _Work) -> float:
        return self._factors.get((work.company, other.company), 1.0)

    def _put_off(self, work: _Work, seconds: float) -> None:
        """It takes so much longer; what is queued behind it begins later."""
        work.end_s += seconds
        for later in self._under_way.values():
            if later is not work and later.begin_s >= work.begin_s and not work.instances.isdisjoint(later.instances):
                shift_s = max(0.0, work.end_s - later.begin_s)
                later.begin_s += shift_s
                later.end_s += shift_s
                self._note(later)
        self._note(work)

    def _note(self, work: _Work) -> None:
        for number in work.instances:
            self._free_at_s[number] = max(self._free_at_s[number], work.end_s)


def _company(action: RunBatch | MigrateKV) -> Company:
    """As which it counts: where there are prompts these decide; a migration is as short as a decode."""
    return "prefill" if kind_of(action) in ("prefill", "mixed") else "decode"
