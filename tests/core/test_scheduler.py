"""What the scheduler does itself, whatever the policy: looking ahead, draining, refusing nonsense."""

from __future__ import annotations

import pytest

from longspan.config import SchedulerConfig
from longspan.core.actions import Action
from longspan.core.events import BatchCompleted, KVMigrated, RequestArrived, TokenOutput
from longspan.core.internal_error import InternalError
from longspan.core.news import News
from longspan.core.policies import POLICIES, create_policy
from longspan.core.policies.base import Policy
from longspan.core.scheduler import Scheduler
from longspan.core.state import SchedulerState
from longspan.errors import ConfigError

from .driver import Driver
from .reading import batches, freed


def driver(num_instances: int = 1, kv_tokens: int = 100, *, lookahead: bool = True) -> Driver:
    config = SchedulerConfig(
        policy="elastic_fcfs", num_instances=num_instances, kv_tokens=kv_tokens, lookahead=lookahead
    )
    return Driver(config)


def starts(actions: list[Action]) -> list[dict[str, int]]:
    """For each batch: request -> first token of its segment."""
    return [{s.request_id: s.start for s in batch.segments} for batch in batches(actions)]


def groups(actions: list[Action]) -> list[tuple[int, ...]]:
    return [batch.group for batch in batches(actions)]


# looking ahead


def test_the_next_iteration_is_queued_behind_the_running_one() -> None:
    d = driver()
    assert starts(d.arrive(10, 9, "a")) == [{"a": 0}]  # nothing behind a prefill
    assert starts(d.complete()) == [{"a": 10}, {"a": 11}]  # one runs, one is queued
    assert starts(d.complete()) == [{"a": 12}]  # always one ahead
    assert starts(driver(lookahead=False).arrive(10, 9)) == [{"r0": 0}]


def test_no_token_beyond_max_tokens_is_looked_ahead() -> None:
    d = driver()
    d.arrive(10, 3, "a")
    assert starts(d.complete()) == [{"a": 10}, {"a": 11}]  # tokens two and three
    assert d.complete() == []
    assert d.complete() == freed(0, "a", (0,), "finished")


def test_who_stops_leaves_one_token_for_nobody_and_frees_its_kv_after_it() -> None:
    d = driver()
    d.arrive(10, 9, "a")
    d.complete()
    assert d.complete(stop={"a"}) == []  # its next iteration is queued already
    assert d.scheduler.stats().num_running == 1
    assert d.complete() == freed(0, "a", (0,), "finished")
    assert d.scheduler.idle()


def test_nobody_looks_ahead_while_a_request_waits_that_has_room() -> None:
    d = driver()
    d.arrive(10, 9, "a")
    d.complete()
    assert d.arrive(10, 9, "b") == []
    assert d.complete() == []  # the queued iteration of a runs, nothing behind it
    assert starts(d.complete()) == [{"b": 0}]


def test_a_waiting_request_that_has_no_room_does_not_stop_looking_ahead() -> None:
    d = driver()
    d.arrive(10, 50, "a")
    d.complete()
    d.arrive(80, 9, "b")
    assert starts(d.complete()) == [{"a": 12}]


def test_a_group_that_shrinks_is_not_looked_ahead() -> None:
    d = driver(2, 40)
    d.arrive(1, 1)
    d.arrive(60, 2, "wide")
    d.arrive(5, 9, "narrow")
    d.complete()
    assert groups(d.complete()) == [(0, 1)]  # the last token of `wide`; then instance 1 is not needed
    assert groups(d.complete()) == [(0,), (0,)]


# aborting


def test_abort_while_waiting() -> None:
    d = driver()
    d.arrive(10, 9, "a")
    d.arrive(10, 9, "b")
    assert d.abort("b") == []
    assert starts(d.complete()) == [{"a": 10}, {"a": 11}]


def test_abort_in_a_prefill_frees_when_the_batch_is_done() -> None:
    d = driver()
    d.arrive(10, 9, "a")
    assert d.abort("a") == []
    assert d.abort("a") == []
    assert d.complete() == freed(0, "a", (0,), "aborted")


def test_abort_in_a_decode_frees_after_the_queued_iteration() -> None:
    d = driver()
    d.arrive(10, 9, "a")
    d.complete()
    assert d.abort("a") == []
    assert d.complete() == []
    assert d.complete() == freed(0, "a", (0,), "aborted")


def test_abort_of_a_ready_request_frees_at_once() -> None:
    d = Driver(SchedulerConfig(policy="elastic_fcfs", num_instances=1, kv_tokens=100), Idler())
    d.policy_may_rest = True
    d.arrive(20, 9, "a")
    d.complete()
    assert d.abort("a") == freed(0, "a", (0,), "aborted")


def test_abort_in_a_migration_frees_where_the_kv_went() -> None:
    d = Driver(SchedulerConfig(policy="elastic_fcfs", num_instances=2, kv_tokens=100), Mover())
    d.arrive(20, 9, "a")
    d.complete()
    assert d.abort("a") == []
    assert d.complete() == freed(0, "a", (1,), "aborted")


def test_abort_of_the_unknown_or_ended_is_ignored() -> None:
    d = driver()
    assert d.abort("nobody") == []
    d.arrive(10, 1, "a")
    d.complete()
    assert d.abort("a") == []


# our own mistakes


def test_time_does_not_go_backwards() -> None:
    scheduler = Scheduler(SchedulerConfig(policy="elastic_fcfs"))
    scheduler.handle(RequestArrived("a", 1, 1), 2.0)
    with pytest.raises(InternalError, match=r"from 2\.0 to 1\.5"):
        scheduler.handle(RequestArrived("b", 1, 1), 1.5)
    with pytest.raises(InternalError):
        scheduler.handle(RequestArrived("b", 1, 1), float("nan"))


@pytest.mark.parametrize(
    ("event", "complaint"),
    [
        (BatchCompleted(7), "batch 7"),
        (BatchCompleted(2, (TokenOutput("a"),)), "does not run"),  # it is still queued
        (BatchCompleted(1, ()), "brought tokens"),
        (BatchCompleted(1, (TokenOutput("b"),)), "brought tokens"),
        (KVMigrated(0), "migration 0"),
        (RequestArrived("a", 1, 1), "twice"),
        (RequestArrived("b", 0, 1), "not validated"),
    ],
)
def test_events_that_cannot_be(event: BatchCompleted | KVMigrated | RequestArrived, complaint: str) -> None:
    d = driver()
    d.arrive(10, 9, "a")
    d.complete()
    with pytest.raises(InternalError, match=complaint):
        d.scheduler.handle(event, d.now)


def test_the_driver_must_say_that_max_tokens_are_reached() -> None:
    scheduler = Scheduler(SchedulerConfig(policy="elastic_fcfs"))
    scheduler.handle(RequestArrived("a", 5, 1), 0.0)
    with pytest.raises(InternalError, match="1 tokens, but the driver did not end it"):
        scheduler.handle(BatchCompleted(0, (TokenOutput("a"),)), 0.0)


def test_policies_by_name() -> None:
    assert create_policy("elastic_fcfs").name == "elastic_fcfs"
    with pytest.raises(ConfigError, match="there is no policy 'magic'; there are: alise, distserve, edf"):
        create_policy("magic")
    assert [create_policy(name).name for name in POLICIES] == list(POLICIES)


class Idler(Policy):
    """Prefills on instance 0, and then does nothing."""

    name = "idler"

    def schedule(self, state: SchedulerState, news: News, now: float) -> None:
        for request in list(state.waiting):
            state.run_batch([0], [state.prefill_segment(request, [0], {0: request.num_tokens})])


class Mover(Idler):
    """And moves all KV from instance 0 to 1."""

    def schedule(self, state: SchedulerState, news: News, now: float) -> None:
        super().schedule(state, news, now)
        for request in list(state.cluster[0].ready.values()):
            state.migrate(request.id, 0, 1, [(0, request.num_computed)])
