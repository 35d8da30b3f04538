"""What a policy may do, and what it is told when it breaks a rule."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from longspan.config import SchedulerConfig
from longspan.core.actions import KVRange, Segment
from longspan.core.books.ledger import Ledger
from longspan.core.books.lifecycle import arrive, complete_batch
from longspan.core.books.request import ALLOWED_TRANSITIONS, Request, RequestStatus
from longspan.core.books.waiting_queue import WaitingQueue
from longspan.core.decision import Decision
from longspan.core.events import BatchCompleted, RequestArrived, TokenOutput
from longspan.core.internal_error import InternalError
from longspan.core.state import SchedulerState

Act = Callable[[SchedulerState], object]


def prepared() -> SchedulerState:
    """Three instances of 20 slots. `ready` has 8 tokens on instance 0 and 4 on 1; `new` waits; 2 is busy with
    `busy`."""
    ledger = Ledger(SchedulerConfig(num_instances=3, kv_tokens=20))
    state = SchedulerState(ledger)
    for name, prompt in (("ready", 12), ("busy", 5), ("new", 10)):
        arrive(ledger, RequestArrived(name, prompt, 9), 0.0)
    state.run_batch((0, 1), [state.prefill_segment(state.request("ready"), (0, 1), {0: 8, 1: 4})])
    complete_batch(ledger, BatchCompleted(0, (TokenOutput("ready"),)))
    state.run_batch((2,), [state.prefill_segment(state.request("busy"), (2,), {2: 5})])
    return state


def decode(state: SchedulerState) -> Segment:
    return state.decode_segment(state.request("ready"), 1)


def prefill(state: SchedulerState, compute: tuple[int, ...] = (0, 1), **kept: int) -> Segment:
    retention = {int(instance[1:]): tokens for instance, tokens in kept.items()}
    return state.prefill_segment(state.request("new"), compute, retention)


def test_segments_of_all_kinds() -> None:
    state = prepared()
    assert decode(state) == Segment("ready", 12, 1, (1,), (KVRange(1, 12, 13),), ((0, 8), (1, 4)), residence=0)
    chunk = prefill(state, i0=3, i1=2)
    assert chunk == Segment("new", 0, 5, (0, 1), (KVRange(0, 0, 3), KVRange(1, 3, 5)), (), emits=False)
    state.run_batch((0, 1), [decode(state), chunk])
    assert [instance.used for instance in state.cluster.instances] == [11, 7, 5]


ILLEGAL: dict[str, tuple[Act, str]] = {
    "busy instance": (lambda s: s.run_batch((0, 1, 2), [decode(s)]), "instance 2 is busy"),
    "no such instance": (lambda s: s.run_batch((0, 1, 3), [decode(s)]), "no instance 3"),
    "holder missing": (lambda s: s.run_batch((1,), [decode(s)]), "not who takes part"),
    "instance too many": (lambda s: s.run_batch((0, 1), [prefill(s, (0,), i0=10)]), "not who takes part"),
    "nobody": (lambda s: s.run_batch((), []), "not who takes part"),
    "instance twice": (lambda s: s.run_batch((0, 1, 1), [decode(s)]), "names an instance twice"),
    "request twice": (lambda s: s.run_batch((0, 1), [decode(s), decode(s)]), "in the batch twice"),
    "unknown request": (lambda s: s.run_batch((0, 1), [replace(decode(s), request_id="x")]), "unknown"),
    "in flight": (lambda s: s.run_batch((0,), [replace(decode(s), request_id="busy")]), "not ready"),
    "wrong start": (lambda s: s.run_batch((0, 1), [replace(decode(s), start=11)]), "does not continue"),
    "beyond the known": (lambda s: s.run_batch((0, 1), [replace(decode(s), length=2)]), "does not continue"),
    "silent": (lambda s: s.run_batch((0, 1), [replace(decode(s), emits=False)]), "must sample"),
    "emits too early": (
        lambda s: s.run_batch((0,), [replace(prefill(s, (0,), i0=5), emits=True)]),
        "must sample",
    ),
    "wrong context": (
        lambda s: s.run_batch((0, 1), [replace(decode(s), context=((0, 12),))]),
        "not where the KV is",
    ),
    "another residence": (lambda s: s.run_batch((0, 1), [replace(decode(s), residence=1)]), "its residence is 0"),
    "a residence of none": (
        lambda s: s.run_batch((0, 1), [replace(prefill(s, i0=5, i1=5), residence=7)]),
        "its residence is yet to begin",
    ),
    "an earlier residence": (lambda s: s.run_batch((0, 1), [replace(decode(s), earlier=((1, 2),))]), "not where"),
    "store elsewhere": (
        lambda s: s.run_batch((0, 1), [replace(decode(s), store=(KVRange(0, 12, 13),))]),
        "does not compute",
    ),
    "store overlaps": (
        lambda s: s.run_batch((0, 1), [replace(prefill(s, i0=10), store=(KVRange(0, 0, 6), KVRange(1, 5, 10)))]),
        "gap, overlap",
    ),
    "store too short": (
        lambda s: s.run_batch((0, 1), [replace(prefill(s, i0=10), store=(KVRange(0, 0, 9),))]),
        "do not cover",
    ),
    "computes twice": (lambda s: s.run_batch((0, 1), [prefill(s, (0, 0), i0=10)]), "somebody twice"),
    "a cut too many": (
        lambda s: s.run_batch((0, 1), [replace(prefill(s, i0=10), cuts=(3, 6))]),
        "do not make a piece for each",
    ),
    "cuts in disorder": (
        lambda s: s.run_batch((0, 1), [replace(prefill(s, (0, 1, 0), i0=10), cuts=(6, 3))]),
        "do not make a piece for each",
    ),
    "an empty piece": (
        lambda s: s.run_batch((0, 1), [replace(prefill(s, i0=10), cuts=(10,))]),
        "do not make a piece for each",
    ),
    "pieces of one": (
        lambda s: s.run_batch((0,), [replace(prefill(s, (0, 0), i0=10), cuts=(4,))]),
        "for one instance alone",
    ),
    "explained by no number": (
        # The type says so as well; a policy of one's own may be without types.
        lambda s: s.explain(Decision("why", ("new",), (), {"because": "it is short"})),  # type: ignore[dict-item]
        "which is no number",
    ),
    "migrate in flight": (lambda s: s.migrate("busy", 2, 0, [(0, 5)]), "not ready"),
    "migrate to busy": (lambda s: s.migrate("ready", 0, 2, [(0, 5)]), "instance 2 is busy"),
    "migrate to itself": (lambda s: s.migrate("ready", 0, 0, [(0, 5)]), "twice"),
    "migrate what is not there": (lambda s: s.migrate("ready", 0, 1, [(7, 9)]), "not at instance 0"),
    "migrate nothing": (lambda s: s.migrate("ready", 0, 1, []), "no ranges"),
    "migrate disorder": (lambda s: s.migrate("ready", 0, 1, [(4, 6), (0, 2)]), "out of order"),
    "preempt in flight": (lambda s: s.preempt("busy"), "not ready"),
    "preempt waiting": (lambda s: s.preempt("new"), "not ready"),
    "refuse running": (lambda s: s.refuse("ready", "no"), "too late"),
}


@pytest.mark.parametrize("name", ILLEGAL)
def test_illegal_acts_change_nothing(name: str) -> None:
    act, complaint = ILLEGAL[name]
    state = prepared()
    used = [instance.used for instance in state.cluster.instances]
    with pytest.raises(InternalError, match=complaint):
        act(state)
    assert [instance.used for instance in state.cluster.instances] == used
    assert state.request("ready").is_ready


def test_room_is_counted_over_the_whole_batch() -> None:
    state = prepared()
    state.preempt("ready")
    segments = [
        state.prefill_segment(state.request("ready"), (0,), {0: 13}),
        state.prefill_segment(state.request("new"), (0,), {0: 10}),
    ]
    with pytest.raises(InternalError, match="instance 0 has 20 free slots, not 23"):
        state.run_batch((0,), segments)


def test_all_rings_of_a_batch_are_rotations_of_one() -> None:
    state = prepared()
    state.preempt("ready")
    long = state.prefill_segment(state.request("ready"), (0, 1), {0: 13})
    with pytest.raises(InternalError, match="rotation"):
        state.run_batch((0, 1), [long, replace(prefill(state, i1=10), compute=(1, 2))])
    pieces = replace(prefill(state, (1, 0, 1), i1=10), cuts=(2, 7))
    assert (pieces.emitter, pieces.pieces(1), pieces.pieces(0)) == (1, [(0, 2, 1), (7, 3, 1)], [(2, 5, 1)])
    with pytest.raises(InternalError, match="rotation"):
        state.run_batch((0, 1), [long, replace(pieces, compute=(1, 2, 1))])
    state.run_batch((0, 1), [long, pieces])


def test_a_preempted_request_returns_to_its_old_place() -> None:
    state = prepared()
    state.preempt("ready")
    assert [request.id for request in state.waiting] == ["ready", "new"]
    assert state.prefill_segment(state.request("ready"), (0,), {0: 13}).length == 13  # prompt and one output
    assert [instance.used for instance in state.cluster.instances] == [0, 0, 5]


def test_the_queue_is_in_order_of_arrival() -> None:
    queue, requests = WaitingQueue(), [Request(f"r{i}", 1, 1, 0.0, arrival_index=i) for i in range(5)]
    for i in (3, 0, 4, 2, 1):
        queue.add(requests[i])
    queue.remove(requests[2])
    assert queue.first is requests[0]
    assert [request.arrival_index for request in queue] == [0, 1, 3, 4]
    with pytest.raises(InternalError, match="does not wait"):
        queue.remove(requests[2])


@pytest.mark.parametrize("status", RequestStatus)
def test_only_the_transitions_in_the_table_are_allowed(status: RequestStatus) -> None:
    for target in RequestStatus:
        request = Request("r", 1, 1, 0.0, 0, status=status)
        if target is status or target in ALLOWED_TRANSITIONS[status]:
            request.become(target)
        else:
            with pytest.raises(InternalError, match=f"{status.value} cannot become {target.value}"):
                request.become(target)
