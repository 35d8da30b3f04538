"""The fleet of the day: which instances are lost, and how many slots it has without them, and with them again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from longspan.core.books.instance import Instance


class Lost(NamedTuple):
    """An instance that is lost: its slots, and whether it is expected back. has_left: it was emptied before."""

    capacity: int
    returns: bool
    has_left: bool


class Slots(NamedTuple):
    """KV slots of some instances: all together, and of the one that has most."""

    total: int
    most: int

    @classmethod
    def of(cls, capacities: Sequence[int]) -> Slots:
        return cls(sum(capacities), max(capacities, default=0))


class Fleet:
    """lost: by number. serving: slots of all that serve. open: of those that are not leaving. expected: of those that
    serve and those that are expected back. full: of all that there are, whether or not they serve. leaving: those that
    serve and are leaving. gone: numbers of those that have left for good, while they count. kept: `full` without these.
    """

    def __init__(self) -> None:
        self.lost: dict[int, Lost] = {}
        self.leaving: list[Instance] = []
        self.gone: list[int] = []
        self.serving = self.open = self.expected = self.full = self.kept = Slots(0, 0)

    @property
    def is_reduced(self) -> bool:
        """Whether some are lost, or leaving."""
        return self.open.total < self.full.total

    def recount(self, instances: Sequence[Instance]) -> None:
        """Count anew: these serve now."""
        self.leaving = [instance for instance in instances if instance.is_leaving]
        serving = [instance.capacity for instance in instances]
        self.serving = Slots.of(serving)
        self.open = Slots.of([instance.capacity for instance in instances if not instance.is_leaving])
        self.expected = Slots.of([*serving, *[lost.capacity for lost in self.lost.values() if lost.returns]])
        self.full = Slots.of([*serving, *[lost.capacity for lost in self.lost.values()]])
        self.gone = [number for number, lost in self.lost.items() if lost.has_left and not lost.returns]
        kept = [lost.capacity for number, lost in self.lost.items() if number not in self.gone]
        self.kept = Slots.of([*serving, *kept])
