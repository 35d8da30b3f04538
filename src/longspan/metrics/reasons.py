"""Why a request waits, in words: its node, what it was promised, when it became hopeless, and why others went first.

The numbers come from the decisions "promise", "late", "hopeless", and of tenants beyond their shares, which the policy
`longspan` notes; where none does, there is nothing to tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import NamedTuple

from longspan.core.actions import RefuseRequest, StopRequest
from longspan.core.decision import OVER_SHARE, ROUTED, WITHIN_SHARE, Decision
from longspan.core.events import RequestAborted, RequestArrived
from longspan.metrics.event_log import LogRecord

_MOST_NAMED = 4


class Shift(NamedTuple):
    """Since when a tenant was beyond its share, or within it."""

    at: float
    is_over: bool


@dataclass(frozen=True, slots=True)
class Rank:
    """What a request was ranked by. Seconds; times are the log's.

    due: its deadline; None if the policy told nothing of it. alone_s: what its prompt takes alone. hopeless_at: when it
    was seen that it cannot be in time. is_promised: whether from then on it goes by what it was promised. shifts: of
    its tenant, so far.
    """

    priority: int
    due: float | None = None
    alone_s: float = 0.0
    hopeless_at: float | None = None
    is_promised: bool = False
    tenant: str | None = None
    shifts: Sequence[Shift] = field(default=(), compare=False, repr=False)

    def learn(self, decision: Decision, now: float) -> Rank:
        if decision.step == "promise" and "deadline_s" in decision.predicted:
            due = now + decision.predicted["deadline_s"]
            return replace(self, due=due, alone_s=decision.predicted.get("alone_s", 0.0))
        if decision.step == "hopeless" and self.hopeless_at is None:
            return replace(self, hopeless_at=now, is_promised=decision.predicted.get("promised_s", 0.0) > 0.0)
        return self

    def is_hopeless(self, at: float) -> bool:
        return self.hopeless_at is not None and self.hopeless_at <= at

    def is_over_share(self, at: float) -> bool:
        return next((shift.is_over for shift in reversed(self.shifts) if shift.at <= at), False)

    def over_share_s(self, start: float, end: float) -> float:
        """Return for how long, between two times, its tenant was beyond its share."""
        ends = [*self.shifts, Shift(end, False)]
        return sum([max(0.0, min(b.at, end) - max(a.at, start)) for a, b in pairwise(ends) if a.is_over])


class Ranks:
    """What the requests that are alive were ranked by, as a log goes on."""

    def __init__(self) -> None:
        self.known: dict[str, Rank] = {}
        self._shifts: dict[tuple[int, str | None], list[Shift]] = {}  # of the tenants of those that are alive
        self._alive: dict[tuple[int, str | None], int] = {}

    def learn(self, record: LogRecord) -> None:
        if isinstance(record.event, RequestArrived):
            service = record.event.service
            flow = service.priority, service.tenant
            shifts = self._shifts.setdefault(flow, [])
            self._alive[flow] = self._alive.get(flow, 0) + 1
            self.known[record.event.request_id] = Rank(service.priority, tenant=service.tenant, shifts=shifts)
        for decision in record.why:
            for request_id in decision.request_ids:
                rank = self.known.get(request_id)
                if rank is not None and decision.step in SHARE_STEPS:
                    shift = Shift(record.now, decision.step == OVER_SHARE)
                    self._shifts[rank.priority, rank.tenant].append(shift)
                elif rank is not None:
                    self.known[request_id] = rank.learn(decision, record.now)

    def forget(self, record: LogRecord) -> None:
        """Keep nothing of those that have ended."""
        for action in record.actions:
            if isinstance(action, RefuseRequest) or (isinstance(action, StopRequest) and action.reason != "preempted"):
                self._forget(action.request_id)
        if isinstance(record.event, RequestAborted):
            self._forget(record.event.request_id)

    def _forget(self, request_id: str) -> None:
        rank = self.known.pop(request_id, None)
        if rank is None:
            return
        flow = rank.priority, rank.tenant
        self._alive[flow] -= 1
        if not self._alive[flow]:
            del self._alive[flow], self._shifts[flow]


SHARE_STEPS = (OVER_SHARE, WITHIN_SHARE)


def why_first(other: Rank, mine: Rank, at: float) -> str:
    """Return why another prompt ran while this one waited; "" if that is not known."""
    if other.priority > mine.priority:
        return f"its priority is {other.priority}"
    if other.priority == mine.priority and other.is_over_share(at) != mine.is_over_share(at):
        return "there was time for it, too" if other.is_over_share(at) else "its tenant was within its share"
    if other.due is None or mine.due is None:
        return ""
    if other.is_hopeless(at):
        if not mine.is_hopeless(at):
            return f"there was time for it, too{', or its promise was at risk' if other.is_promised else ''}"
        return "it goes by its promise" if other.is_promised else "sharing alike would end it sooner"
    if mine.is_hopeless(at):
        return "it could be in time yet"
    earlier_s, less_s = mine.due - other.due, mine.alone_s - other.alone_s
    if earlier_s > 0.0:
        return f"it was due {earlier_s:.3f} s earlier"
    if less_s > 0.0:
        return f"it was due {-earlier_s:.3f} s later, but its prompt takes {less_s:.3f} s less"
    return "it had begun" if less_s < 0.0 else "it came first"


def home_of(decisions: Sequence[Decision]) -> frozenset[int] | None:
    """Return the instances of the node to which an arrival went; None if that is not told: all may be its own."""
    for decision in decisions:
        if decision.step == ROUTED:
            return frozenset(_node(decision))
    return None


def _node(decision: Decision) -> range:
    first = int(decision.predicted["first"])
    return range(first, first + int(decision.predicted["instances"]))


def in_words(decision: Decision) -> list[str]:
    """Return sentences about a decision; none if there are none for such."""
    told = {name: f"{value:.3f} s" for name, value in decision.predicted.items()}
    match decision.step:
        case "promise" if {"median_s", "quote_s", "promised_s", "deadline_s", "alone_s"} <= told.keys():
            return [
                f"it is due {told['deadline_s']} after it came, takes {told['alone_s']} alone, and is promised its "
                f"first token within {told['promised_s']}",
                f"half of its like have theirs within {told['median_s']}, 95 of 100 within {told['quote_s']}"
                f"{_ahead(decision)}",
            ]
        case "node":
            node = _node(decision)
            return [
                f"it belongs to node {decision.predicted['node']:.0f}, instances {node[0]} to {node[-1]}, each of "
                f"which has {told['before_s']} of work before it; elsewhere it would be up to {told['most_s']}",
                *_cached(decision),
            ]
        case "evict":
            return [_evicted(decision)]
        case "copy" if {"copy_s", "saved_s"} <= told.keys():
            return [_copied(decision)]
        case "hopeless" if "late_s" in told:
            until = ", until its promise is at risk" if decision.predicted.get("promised_s") else ""
            return [
                f"it would be {told['late_s']} late: from here on it gets what those leave that can be in time{until}"
            ]
        case "late" if "late_s" in told:
            return [f"it is served, though its first token would be {told['late_s']} later than is promised"]
    return []


def _evicted(decision: Decision) -> str:
    (beneficiary, *authors), told = decision.request_ids, decision.predicted
    whose = [f"{told[f'tokens of {name}']:.0f} of {name}" for name in authors[:_MOST_NAMED]]
    others = f" and of {len(authors) - _MOST_NAMED} others" if len(authors) > _MOST_NAMED else ""
    where = decision.instances[0]
    return f"{told['tokens']:.0f} cached tokens on {where} were evicted for {beneficiary}: {', '.join(whose)}{others}"


def _copied(decision: Decision) -> str:
    source, target = decision.instances
    many = len(decision.request_ids)
    who = "it waits" if many == 1 else f"{many} requests wait"
    told = decision.predicted
    return (
        f"{told['tokens']:.0f} tokens of its prefix are copied from {source} to {target}, which takes "
        f"{told['copy_s']:.3f} s: {who} for them, and anything else would take {told['saved_s']:.3f} s longer"
    )


def _cached(decision: Decision) -> list[str]:
    told = decision.predicted
    if "cached_tokens" not in told:
        return []
    cached, most = int(told["cached_tokens"]), int(told["most_cached_tokens"])
    better = f"; another had {most}, but more work" if most > cached else ""
    return [f"the node had {cached} tokens of its prompt{better}"]


def _ahead(decision: Decision) -> str:
    told = decision.predicted
    if "ahead" not in told:
        return ""
    if not told["ahead"]:
        return "; nobody goes before it"
    who = "one request goes" if told["ahead"] == 1 else f"{told['ahead']:.0f} requests go"
    return f"; {who} before it, with {told.get('ahead_s', 0.0):.3f} s of work"
