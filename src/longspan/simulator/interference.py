"""What instances cost each other that do not even work together: those of one host share its memory and its power."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from longspan.core.actions import MigrateKV, RunBatch
from longspan.core.episode import Company
from longspan.sib import MeasuredInterference
from longspan.simulator.usage import kind_of


@dataclass(frozen=True, slots=True)
class Interference:
    """extra: by what share an iteration takes longer for each other instance at work, by its kind and the other's."""

    extra: dict[tuple[Company, Company], float]

    @classmethod
    def of(cls, measured: Iterable[MeasuredInterference]) -> Interference | None:
        """None if nothing was measured."""
        found = {(one.kind, one.beside): max(0.0, one.factor - 1.0) for one in measured}
        return cls(found) if found else None


class Neighbours:
    """Who is at work until when, on a machine with interference."""

    def __init__(self, interference: Interference) -> None:
        self._extra = interference.extra
        self._busy: dict[int, tuple[float, Company]] = {}

    def slowdown(self, action: RunBatch | MigrateKV, instances: tuple[int, ...], begin_s: float) -> float:
        """What the others who are at work as it begins make of its time: a factor."""
        kind = _company(action)
        factor = 1.0
        for number, (end_s, other) in self._busy.items():
            if end_s > begin_s and number not in instances:
                factor += self._extra.get((kind, other), 0.0)
        return factor

    def work(self, action: RunBatch | MigrateKV, instances: tuple[int, ...], end_s: float) -> None:
        self._busy.update(dict.fromkeys(instances, (end_s, _company(action))))


def _company(action: RunBatch | MigrateKV) -> Company:
    """As which it counts: where there are prompts these decide; a migration is as short as a decode."""
    return "prefill" if kind_of(action) in ("prefill", "mixed") else "decode"
