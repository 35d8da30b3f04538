"""Prefixes that are copied to an instance that has time, from one where too many wait for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from longspan.core.actions import MigrateKV
from longspan.core.books.request import Request, RequestStatus
from longspan.core.decision import COPIED, Decision
from longspan.core.policies.chunked.memory.recomputing import Recomputing, last_key
from longspan.core.state import SchedulerState

_PATIENCE = 16
"""Batches per instance that pass before a copy that cannot begin is given up."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A request waits for its prefix. home: the instance that has most of it, or will have. The others: see
    `Backlog.settle`."""

    request: Request
    home: int
    saved_s: float
    left_s: float


@dataclass(frozen=True, slots=True)
class _Copy:
    """blocks: of the prefix. since: the batches that had been issued when it was decided. copy_s, saved_s: see
    `COPIED`."""

    request: Request
    source: int
    target: int
    blocks: int
    since: int
    copy_s: float
    saved_s: float


class Copies:
    """Those that are decided, and have not begun: they begin as soon as both instances are idle, for which each waits.

    One at a time for each prefix, which is known by the key of its last block: the others find it there, too.
    """

    def __init__(self) -> None:
        self._by_key: dict[bytes, _Copy] = {}

    def advance(self, state: SchedulerState) -> list[tuple[int, int]]:
        """Begin what can begin now; returns the instances that are to come together for the rest."""
        pairs: list[tuple[int, int]] = []
        self._by_key = {key: copy for key, copy in self._by_key.items() if _is_waited_for(state, copy)}
        for key, copy in list(self._by_key.items()):
            if not _can_begin(state, copy):
                continue
            if state.cluster[copy.source].is_idle and state.cluster[copy.target].is_idle:
                if (action := state.copy(copy.request, copy.source, copy.target)) is not None:
                    state.explain(_explained(state, copy, key, action))
                del self._by_key[key]
            else:
                pairs.append((copy.source, copy.target))
        return pairs

    def choose(
        self, state: SchedulerState, request: Request, key: bytes, held: Mapping[int, int], targets: Iterable[int],
        most_s: float, migration_s: Callable[[int], float],
    ) -> list[int]:  # fmt: skip
        """Return where a waiting request shall have its prefix copied to, which it waits for then; or nowhere.

        held: who has it. targets: who has time and room, the best first. most_s: that it may take, to be better than to
        wait for who has it, and than to compute it again. migration_s: of so many tokens.
        """
        known, (source, *others) = self._by_key.get(key), held
        if others or state.cluster[source].is_leaving:
            return []
        if known is not None and _is_waited_for(state, known):
            return [known.target] if known.source == source and _can_begin(state, known) else []
        there = sum(held.values())
        for target in targets:
            tokens = there - state.cached(request, frozenset([target]))
            copy_s = migration_s(tokens)
            if copy_s < most_s and _has_room(state, request, source, target):
                blocks, saved_s = there // state.config.prefix_block, most_s - copy_s
                self._by_key[key] = _Copy(request, source, target, blocks, state.num_batches, copy_s, saved_s)
                return [target]
        return []


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """What is remembered of prefixes that come to be on other instances, too: computed once more there, or copied."""

    recomputing: Recomputing = field(default_factory=Recomputing)
    copies: Copies = field(default_factory=Copies)


def _is_waited_for(state: SchedulerState, copy: _Copy) -> bool:
    """Tell whether its request waits, and both instances are there. One that is not waited for may be decided anew."""
    cluster = state.cluster
    if copy.request.status is not RequestStatus.WAITING or copy.request not in state.waiting:
        return False
    return all([number in cluster and not cluster[number].is_leaving for number in (copy.source, copy.target)])


def _can_begin(state: SchedulerState, copy: _Copy) -> bool:
    """Tell whether it can begin, now or soon."""
    is_late = state.num_batches - copy.since > _PATIENCE * len(state.cluster)
    return not is_late and _has_room(state, copy.request, copy.source, copy.target)


def _has_room(state: SchedulerState, request: Request, source: int, target: int) -> bool:
    return 0 < state.copyable(request, source, target) <= state.cluster[target].unreserved


def _explained(state: SchedulerState, copy: _Copy, key: bytes, action: MigrateKV) -> Decision:
    """Return what is told of it, to all who wait for that prefix."""
    others = [each for each in state.waiting if each is not copy.request and last_key(each, copy.blocks) == key]
    told = {"tokens": action.num_tokens, "copy_s": copy.copy_s, "saved_s": copy.saved_s}
    return Decision(COPIED, (copy.request.id, *[each.id for each in others]), (copy.source, copy.target), told)
