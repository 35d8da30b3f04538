"""Why a request waits, in words: what it was promised, when it became hopeless, and why others went first.

The numbers come from the decisions "promise", "late" and "hopeless", which the policy `longspan` notes; where none
does, there is nothing to tell.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from longspan.core.decision import Decision
from longspan.core.events import RequestArrived


@dataclass(frozen=True, slots=True)
class Rank:
    """What a request was ranked by. Seconds; times are the log's.

    due: its deadline; None if the policy told nothing of it. alone_s: what its prompt takes alone. hopeless_at: when it
    was seen that it cannot be in time.
    """

    priority: int
    due: float | None = None
    alone_s: float = 0.0
    hopeless_at: float | None = None

    def learn(self, decision: Decision, now: float) -> Rank:
        if decision.step == "promise" and "deadline_s" in decision.predicted:
            due = now + decision.predicted["deadline_s"]
            return replace(self, due=due, alone_s=decision.predicted.get("alone_s", 0.0))
        if decision.step == "hopeless" and self.hopeless_at is None:
            return replace(self, hopeless_at=now)
        return self

    def is_hopeless(self, at: float) -> bool:
        return self.hopeless_at is not None and self.hopeless_at <= at


def rank_of(arrived: RequestArrived) -> Rank:
    return Rank(arrived.service.priority)


def why_first(other: Rank, mine: Rank, at: float) -> str:
    """Return why another prompt ran while this one waited; "" if that is not known."""
    if other.priority > mine.priority:
        return f"its priority is {other.priority}"
    if other.due is None or mine.due is None:
        return ""
    if other.is_hopeless(at):
        return "sharing alike would end it sooner" if mine.is_hopeless(at) else "there was time for it, too"
    if mine.is_hopeless(at):
        return "it could be in time yet"
    earlier_s, less_s = mine.due - other.due, mine.alone_s - other.alone_s
    if earlier_s > 0.0:
        return f"it was due {earlier_s:.3f} s earlier"
    if less_s > 0.0:
        return f"it was due {-earlier_s:.3f} s later, but its prompt takes {less_s:.3f} s less"
    return "it had begun" if less_s < 0.0 else "it came first"


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
        case "hopeless" if "late_s" in told:
            return [f"it would be {told['late_s']} late: from here on it gets what those leave that can be in time"]
        case "late" if "late_s" in told:
            return [f"it is served, though its first token would be {told['late_s']} later than is promised"]
    return []


def _ahead(decision: Decision) -> str:
    told = decision.predicted
    if "ahead" not in told:
        return ""
    if not told["ahead"]:
        return "; nobody goes before it"
    who = "one request goes" if told["ahead"] == 1 else f"{told['ahead']:.0f} requests go"
    return f"; {who} before it, with {told.get('ahead_s', 0.0):.3f} s of work"
