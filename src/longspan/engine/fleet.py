"""The instances as the engine knows them: which are missing, which leave, and what becomes of those that are empty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from longspan.errors import RequestError
from longspan.executor.base import Executor, InstanceReport, LostInstance

Purpose = Literal["drain", "remove", "restart"]
"""Why an instance is emptied: to stand empty, to end, or to have its workers started again."""


class Fleet:
    """can_change: the others go on without one, so instances can leave and come.

    num_instances: that have joined, those among them that are missing included. missing: these, and one that is added.
    num_losses, num_tokens_lost: times that one was lost, and the tokens whose KV went with it.
    """

    def __init__(self, executor: Executor, num_instances: int) -> None:
        self._executor = executor
        self.num_instances = num_instances
        self._purposes: dict[int, Purpose] = {}
        self._passing: set[int] = set()  # whose purpose ends with their workers, however these end
        self._drained: set[int] = set()
        self._removed: set[int] = set()
        self.can_change = False
        self.missing: dict[int, str] = {}
        self.num_losses = self.num_tokens_lost = 0

    def lose(self, lost: LostInstance, held: int) -> bool:
        """Note a loss; tell whether it is one that nobody wanted, and not more about one that is known.

        held: tokens whose KV is there.
        """
        instance = lost.instance
        was_there = instance not in self.missing
        purpose, was_empty = self._purposes.get(instance), instance in self._drained
        is_removed = purpose == "remove" and not lost.returns
        was_wanted = was_empty and (is_removed or purpose == "restart")
        if is_removed:
            self._removed.add(instance)
        if is_removed or purpose == "restart" or instance in self._passing:
            self._forget_purpose(instance)
        self._drained.discard(instance)
        self.missing[instance] = lost.message
        self.num_losses += was_there and not was_wanted
        self.num_tokens_lost += held
        return was_there and not was_wanted

    def add(self) -> int:
        """Have one instance more, and return its number. One that is being added is not there yet: it comes first.

        Raises RequestError: it cannot be.
        """
        self._check_it_can_change()
        number = self.num_instances
        if number in self.missing:
            self._executor.restart(number)
        else:
            assert self._executor.add() == number
            self.missing[number] = "it has been added, and loads"
        return number

    def join(self, instance: int) -> bool:
        """Note that it is there; tell whether it is to be emptied, as was wanted of it before it was lost."""
        self.missing.pop(instance, None)
        self._removed.discard(instance)
        self.num_instances = max(self.num_instances, instance + 1)
        self._executor.admit(instance)
        return instance in self._purposes

    def leave(self, instance: int, purpose: Purpose, *, passing: bool = False) -> bool:
        """Have an instance emptied; tell whether that begins now. Raises RequestError: it cannot leave.

        passing: if it is lost before that is done, nothing more is wanted of those that come in its place.
        """
        last = self.num_instances - (self.num_instances not in self.missing)  # one that is added is to be seen, too
        if not 0 <= instance <= last:
            there = f"there are 0 to {last}" if last else "there is 0 alone"
            raise RequestError(f"there is no instance {instance}; {there}", param="instance")
        self._check_it_can_change()
        if instance in self.missing:
            self._leave_missing(instance, purpose)
            return False
        begins = instance not in self._purposes
        others = [i for i in range(self.num_instances) if i not in self.missing and i not in self._purposes]
        if begins and others == [instance]:
            raise RequestError(f"instance {instance} is the last that takes requests")
        self._purposes[instance] = purpose
        (self._passing.add if passing else self._passing.discard)(instance)
        if instance in self._drained:
            self._carry_out(instance)
        return begins

    @property
    def num_missing(self) -> int:
        """How many are not there, though nobody wanted that."""
        return len(self.missing.keys() - self._removed)

    @property
    def none_serves(self) -> bool:
        """Whether none takes requests: those that are there have been emptied."""
        return all(instance in self.missing or instance in self._drained for instance in range(self.num_instances))

    def drained(self, instance: int) -> None:
        """It holds nothing, and nothing runs there."""
        self._drained.add(instance)
        self._carry_out(instance)

    def reports(self) -> Sequence[InstanceReport]:
        """Tell how each instance is, in order."""
        return [self._with_purpose(report) for report in self._executor.reports()]

    def _check_it_can_change(self) -> None:
        if not self.can_change:
            raise RequestError("instances cannot come or go here: their workers cannot go on without each other")

    def _leave_missing(self, instance: int, purpose: Purpose) -> None:
        if purpose == "restart":
            self._forget_purpose(instance)
            self._executor.restart(instance)
        elif purpose == "drain":
            raise RequestError(f"instance {instance} is missing: {self.missing[instance]}")
        else:
            raise RequestError(f"instance {instance} is missing already: {self.missing[instance]}")

    def _forget_purpose(self, instance: int) -> None:
        self._purposes.pop(instance, None)
        self._passing.discard(instance)

    def _carry_out(self, instance: int) -> None:
        purpose = self._purposes[instance]
        if purpose != "drain":
            why = "it was removed" if purpose == "remove" else "it was restarted"
            self._executor.end(instance, why, again=purpose == "restart")

    def _with_purpose(self, report: InstanceReport) -> InstanceReport:
        purpose = self._purposes.get(report.instance)
        if report.state == "missing" and (purpose == "remove" or report.instance in self._removed):
            return replace(report, state="removed")
        if report.state != "serving" or purpose is None:
            return report
        return replace(report, state="drained" if report.instance in self._drained else "leaving")
