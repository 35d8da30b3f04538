"""Slots set aside by plan: nobody else takes them, and the request takes exactly these."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from longspan.config import SchedulerConfig
from longspan.core.actions import KVRange
from longspan.core.books.ledger import Ledger
from longspan.core.books.lifecycle import abort, arrive, complete_batch
from longspan.core.events import BatchCompleted, RequestAborted, RequestArrived
from longspan.core.internal_error import InternalError
from longspan.core.invariants import check_invariants
from longspan.core.state import SchedulerState

Act = Callable[[SchedulerState], object]


def prepared() -> tuple[Ledger, SchedulerState]:
    """Two instances of 20 slots. `growing` has stored 5 of 18 tokens on 0, and reserved 7 there and 6 on 1."""
    ledger = Ledger(SchedulerConfig(num_instances=2, kv_tokens=20, decode_headroom=3))
    state = SchedulerState(ledger)
    for name, prompt in (("growing", 18), ("other", 15)):
        arrive(ledger, RequestArrived(name, prompt, 6), 0.0)
    state.reserve("growing", [KVRange(0, 0, 12), KVRange(1, 12, 18)])
    state.run_batch((0,), [state.prefill_segment(state.request("growing"), (0,), {0: 5})])
    complete_batch(ledger, BatchCompleted(0))
    check_invariants(ledger)
    return ledger, state


def test_a_chunk_uses_up_what_was_reserved_for_it() -> None:
    ledger, state = prepared()
    request = state.request("growing")
    assert request.reserved == (KVRange(0, 5, 12), KVRange(1, 12, 18))
    assert [instance.unreserved for instance in state.cluster.instances] == [8, 14]
    # Headroom is promised behind the plan's end, and not twice.
    assert (request.home, request.promised) == (1, 3)
    assert [instance.room for instance in state.cluster.instances] == [8, 11]
    state.run_batch((0, 1), [state.prefill_segment(request, (0, 1), [(0, 7), (1, 2)])])
    assert request.reserved == (KVRange(1, 14, 18),)
    check_invariants(ledger)


@pytest.mark.parametrize("end", ["preempt", "abort"])
def test_it_ends_with_the_request(end: str) -> None:
    ledger, state = prepared()
    if end == "preempt":
        state.preempt("growing")
    else:
        abort(ledger, RequestAborted("growing"))
    assert [instance.unreserved for instance in state.cluster.instances] == [20, 20]
    check_invariants(ledger)


def test_a_plan_may_change() -> None:
    ledger, state = prepared()
    state.reserve("growing", [KVRange(1, 5, 18)])
    assert [instance.unreserved for instance in state.cluster.instances] == [15, 7]
    check_invariants(ledger)


def prefill_other(state: SchedulerState, **kept: int) -> object:
    retention = {int(name[1:]): tokens for name, tokens in kept.items()}
    segment = state.prefill_segment(state.request("other"), tuple(retention), retention)
    return state.run_batch(tuple(retention), [segment])


ILLEGAL: dict[str, tuple[Act, str]] = {
    "others take it": (lambda s: prefill_other(s, i0=9), "instance 0 has 8 free slots, not 9"),
    "reserved twice": (lambda s: s.reserve("other", [KVRange(1, 0, 15)]), "14 slots that may be reserved, not 15"),
    "a gap": (lambda s: s.reserve("other", [KVRange(0, 0, 4), KVRange(1, 5, 9)]), "no plan for the tokens from 4"),
    "what is stored": (lambda s: s.reserve("growing", [KVRange(0, 4, 9)]), "no plan for the tokens from 5"),
    "too much": (lambda s: s.reserve("growing", [KVRange(1, 5, 18), KVRange(0, 18, 24)]), "ends at 23"),
    "no such instance": (lambda s: s.reserve("other", [KVRange(2, 0, 4)]), "no plan"),
    "stored elsewhere": (
        lambda s: s.run_batch((0, 1), [s.prefill_segment(s.request("growing"), (0, 1), [(1, 5)])]),
        "stores elsewhere than reserved",
    ),
}


@pytest.mark.parametrize("name", ILLEGAL)
def test_what_is_not_allowed(name: str) -> None:
    act, complaint = ILLEGAL[name]
    ledger, state = prepared()
    with pytest.raises(InternalError, match=complaint):
        act(state)
    check_invariants(ledger)
