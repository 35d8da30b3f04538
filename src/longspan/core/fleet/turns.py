"""Whose turn it is on an instance: the policy's, or that of what goes before it (repairs, migrations of who leaves)."""

from __future__ import annotations

from collections.abc import Iterable

from longspan.core.books.ledger import Ledger


class Turns:
    """After each such batch or migration the policy has its turn on the instances that these took.

    Attributes:
        owed: instances on which it has had none since.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.owed: set[int] = set()
        self._ledger = ledger
        self._offered: frozenset[int] = frozenset()

    def take(self, instances: Iterable[int]) -> None:
        """Note that one has been started there."""
        self.owed.update(instances)

    def begin(self) -> None:
        """Note that the policy has its turn now, on all instances that are idle."""
        self._offered = frozenset(self._ledger.cluster.idle_numbers)

    def end(self) -> None:
        """Note that it has had it, whether it has started anything or not."""
        self.owed -= self._offered

    def forget(self, instance: int) -> None:
        """Note that an instance is gone."""
        self.owed.discard(instance)
