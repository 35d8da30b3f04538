"""Several nodes, each with a scheduler: what one decides is what it would decide alone, and arrivals are shared out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace as changed

from longspan.config import SchedulerConfig
from longspan.core.actions import Action, FreeKV, KVRange, MigrateKV, RefuseRequest, RunBatch, Segment, StopRequest
from longspan.core.costs.cost_model import FittedCostModel
from longspan.core.events import BatchCompleted, Event, FirstStageFree, KVMigrated, RequestAborted, RequestArrived
from longspan.core.hierarchy import HierarchicalScheduler, make_scheduler
from longspan.core.scheduler import Scheduler
from longspan.errors import ConfigError

from .cost_models import cost_models, scaling_model
from .driver import Driver
from .random_policy import RandomPolicy
from .settings import EVERY_POLICY
from .test_properties import Workload, run, workloads


def cut(workload: Workload, node_instances: int, policy: str) -> SchedulerConfig:
    return replace(workload.config, policy=policy, node_instances=node_instances)


def nodes_of(config: SchedulerConfig) -> list[range]:
    """The instances of each node."""
    first, nodes = 0, []
    for node in range(config.num_nodes):
        nodes.append(range(first, first + config.of_node(node).num_instances))
        first = nodes[-1].stop
    return nodes


@given(st.integers(1, 300), st.integers(1, 300))
def test_nodes_are_as_even_as_can_be(instances: int, node_instances: int) -> None:
    sizes = [len(node) for node in nodes_of(SchedulerConfig(num_instances=instances, node_instances=node_instances))]
    assert sum(sizes) == instances
    assert sizes[0] == max(sizes) <= node_instances
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-instances // node_instances)


def test_one_node_is_an_ordinary_scheduler() -> None:
    for node_instances in (None, 4, 5):
        config = SchedulerConfig(num_instances=4, node_instances=node_instances)
        assert type(make_scheduler(config, cost_model=scaling_model(4))) is Scheduler
    with pytest.raises(ConfigError, match="node_instances is 0"):
        SchedulerConfig(node_instances=0)


class Renumbered:
    """A scheduler that is alone, told what a node of several is told, and asked to decide all the same.

    Batches, migrations and residences have other numbers there; instances are counted from the node's first.
    """

    def __init__(self, config: SchedulerConfig, instances: range, cost_model: FittedCostModel) -> None:
        self.alone = Scheduler(config, cost_model=cost_model)
        self.instances = instances
        self.numbers: dict[str, dict[int, int]] = {"batch": {}, "migration": {}, "residence": {}}

    def check(self, event: Event, now: float, actions: Sequence[Action]) -> None:
        got = self.alone.handle(self._event(event), now)
        assert got == [self._action(action) for action in actions]

    def _number(self, kind: str, number: int) -> int:
        known = self.numbers[kind]
        return known.setdefault(number, len(known))

    def _event(self, event: Event) -> Event:
        if isinstance(event, BatchCompleted | FirstStageFree):
            return changed(event, batch_id=self._number("batch", event.batch_id))
        if isinstance(event, KVMigrated):
            return changed(event, migration_id=self._number("migration", event.migration_id))
        return event

    def _action(self, action: Action) -> Action:
        if isinstance(action, RunBatch):
            segments = tuple(self._segment(segment) for segment in action.segments)
            return RunBatch(self._number("batch", action.batch_id), self._local(action.group), segments)
        if isinstance(action, MigrateKV):
            return changed(
                action, migration_id=self._number("migration", action.migration_id),
                source=action.source - self.instances.start, target=action.target - self.instances.start,
                residence=self._number("residence", action.residence),
            )  # fmt: skip
        if isinstance(action, FreeKV):
            residence = self._number("residence", action.residence)
            return changed(action, residence=residence, instances=self._local(action.instances))
        if isinstance(action, StopRequest):
            return changed(action, instances=self._local(action.instances))
        return action

    def _segment(self, segment: Segment) -> Segment:
        first = self.instances.start
        return changed(
            segment, compute=self._local(segment.compute),
            store=tuple(KVRange(kept.instance - first, kept.start, kept.end) for kept in segment.store),
            context=tuple((number - first, tokens) for number, tokens in segment.context),
            residence=self._number("residence", segment.residence),
        )  # fmt: skip

    def _local(self, numbers: tuple[int, ...]) -> tuple[int, ...]:
        assert set(numbers) <= set(self.instances), "it reaches into another node"
        return tuple(number - self.instances.start for number in numbers)


def ended_by(event: Event) -> list[str]:
    if isinstance(event, RequestAborted):
        return [event.request_id]
    outputs = event.outputs if isinstance(event, BatchCompleted) else ()
    return [output.request_id for output in outputs if output.finish_reason is not None]


def work_of(actions: Sequence[Action]) -> list[tuple[str, int]]:
    batches = [("batch", action.batch_id) for action in actions if isinstance(action, RunBatch)]
    return batches + [("migration", action.migration_id) for action in actions if isinstance(action, MigrateKV)]


def replay_apart(driver: Driver, cost_model: FittedCostModel) -> None:
    """Have each node decide alone what was decided in the fleet."""
    config = replace(driver.config, max_waiting=10**6)  # how many wait is a matter of the whole fleet
    nodes = [Renumbered(config.of_node(n), has, cost_model) for n, has in enumerate(nodes_of(config))]
    home: dict[str, Renumbered] = {}
    at_work: dict[tuple[str, int], Renumbered] = {}
    for (now, event, actions), why in zip(driver.log, driver.why, strict=True):
        if isinstance(event, RequestArrived):
            routed = [decision.predicted["node"] for decision in why if decision.step == "node"]
            if not routed:
                assert [type(action) for action in actions] == [RefuseRequest]
                continue
            home[event.request_id] = nodes[int(routed[0])]
            node = home[event.request_id]
        elif isinstance(event, RequestAborted):
            if event.request_id not in home:
                assert not actions
                continue
            node = home[event.request_id]
        elif isinstance(event, KVMigrated):
            node = at_work["migration", event.migration_id]
        else:
            node = at_work["batch", event.batch_id]
        node.check(event, now, actions)
        for request_id in ended_by(event):
            home.pop(request_id, None)  # an abort of it concerns no node any more
        at_work |= dict.fromkeys(work_of(actions), node)


@pytest.mark.parametrize("policy", EVERY_POLICY)
@settings(max_examples=10)
@given(workloads(), cost_models(), st.integers(1, 4))
def test_a_node_decides_as_it_would_alone(
    policy: str, workload: Workload, cost_model: FittedCostModel, node_instances: int
) -> None:
    """And all requests come to an end; and the log of the whole fleet replays."""
    config = cut(workload, node_instances, policy)
    driver = Driver(config, seed=workload.seed, cost_model=cost_model)
    run(driver, workload)
    if config.num_nodes > 1:
        replay_apart(driver, cost_model)
    again = make_scheduler(config, cost_model=cost_model)
    assert [again.handle(event, now) for now, event, _ in driver.log] == [actions for *_, actions in driver.log]


@settings(max_examples=30)
@given(workloads(), st.integers(1, 4))
def test_each_node_gets_a_policy_like_the_one_given(workload: Workload, node_instances: int) -> None:
    run(Driver(cut(workload, node_instances, "longspan"), RandomPolicy(workload.seed), seed=workload.seed), workload)


def fleet(**settings: object) -> Driver:
    """Three nodes of two instances with 100 slots each."""
    config = SchedulerConfig(
        policy="longspan", num_instances=6, node_instances=2, kv_tokens=100, decode_headroom=0,
    )  # fmt: skip
    return Driver(replace(config, **settings), cost_model=scaling_model(2))


def node_of(driver: Driver, prompt: int, max_tokens: int = 5) -> int:
    """Where a request goes that arrives now."""
    driver.arrive(prompt, max_tokens)
    (why,) = [decision for decision in driver.why[-1] if decision.step == "node"]
    return int(why.predicted["node"])


def test_arrivals_go_to_who_has_least_to_do_before_them() -> None:
    d = fleet()
    assert [node_of(d, tokens) for tokens in (90, 10, 12)] == [0, 1, 2]
    assert node_of(d, 60) == 1  # beside 10 tokens, rather than beside 12 or 90
    (why,) = [decision for decision in d.why[-1] if decision.step == "node"]
    assert 0 < why.predicted["before_s"] < why.predicted["most_s"]
    assert node_of(d, 20) == 0  # 90 will let it pass
    d.finish()


def test_who_has_finished_counts_no_more() -> None:
    d = fleet()
    assert [node_of(d, tokens, 1) for tokens in (90, 60, 60)] == [0, 1, 2]
    d.complete()  # the first
    assert node_of(d, 60, 1) == 0
    d.finish()


def test_an_aborted_or_refused_request_counts_no_more() -> None:
    d = fleet()
    assert [node_of(d, 90) for _ in range(3)] == [0, 1, 2]
    d.abort("r1")
    assert node_of(d, 90) == 1
    d.finish()


def test_who_lacks_room_at_one_node_goes_to_another() -> None:
    d = fleet()
    assert node_of(d, 190) == 0
    d.complete()
    d.complete()  # it is computed, so that nothing is before anybody there
    assert [node_of(d, 20) for _ in range(6)] == [1, 2, 1, 2, 1, 2]
    d.finish()


def test_a_request_that_no_node_holds_is_refused() -> None:
    d = fleet()
    (refusal,) = d.arrive(190, 11)
    assert isinstance(refusal, RefuseRequest)
    assert refusal.reason == "too_long"
    assert "201 tokens together, but each node of this server holds 200 at most" in refusal.message
    assert d.scheduler.request_limit == 200
    assert not isinstance(d.arrive(190, 10)[0], RefuseRequest)
    d.finish()


def test_how_many_may_wait_is_a_matter_of_the_whole_fleet() -> None:
    d = fleet(max_waiting=4, kv_tokens=10)
    for _ in range(3):
        d.arrive(18, 2)  # one for each node
    assert all(not isinstance(d.arrive(18, 2), RefuseRequest) for _ in range(4))
    assert d.scheduler.stats().num_waiting == 4
    (refusal,) = d.arrive(18, 2)
    assert isinstance(refusal, RefuseRequest)
    assert refusal.reason == "queue_full"
    d.finish()


def test_the_fleet_is_asked_as_one_scheduler_is() -> None:
    d = fleet()
    scheduler = d.scheduler
    assert isinstance(scheduler, HierarchicalScheduler)
    assert scheduler.idle()
    for name, tokens in (("a", 100), ("b", 90), ("c", 80), ("d", 70)):
        d.arrive(tokens, 5, name)
    assert not scheduler.idle()
    assert all(scheduler.knows(name) for name in "abcd")
    assert not scheduler.knows("e")
    stats = scheduler.stats()
    assert len(stats.kv_tokens_used) == 6
    assert sum(stats.kv_tokens_used) == 340
    assert stats.num_running + stats.num_waiting == 4
    estimate = scheduler.estimate("d", d.now)
    assert estimate is not None and estimate.quote_s > 0
    assert scheduler.estimate("e", d.now) is None
    d.finish()


def nodes_with_talks() -> Driver:
    """Two nodes of one instance; the prompts 0 to 3,999 and 10,000 to 13,999 are cached on one each."""
    config = SchedulerConfig(
        num_instances=2, node_instances=1, kv_tokens=20_000, policy="elastic_fcfs", prefix_block=16, decode_headroom=0
    )
    d = Driver(config, cost_model=scaling_model(1, per_token=1e-3))
    for first in (0, 10_000):
        d.arrive(list(range(first, first + 4000)), 1, f"talk{first}")
    d.finish()
    return d


def went_to(d: Driver, request_id: str) -> int:
    (node,) = [why.predicted["node"] for each in d.why for why in each if why.request_ids == (request_id,)
               and why.step == "node"]  # fmt: skip
    return int(node)


def test_an_arrival_goes_to_the_node_that_has_its_prefix() -> None:
    d = nodes_with_talks()
    assert {went_to(d, f"talk{first}") for first in (0, 10_000)} == {0, 1}
    for turn in range(3):
        for first in (10_000, 0):
            name = f"{first} again {turn}"
            d.arrive([*range(first, first + 4000), 7 + turn], 1, name)
            assert went_to(d, name) == went_to(d, f"talk{first}")
            (told,) = [why.predicted for why in d.why[-1] if why.step == "node"]
            assert told["cached_tokens"] == 4000 == told["most_cached_tokens"]
            d.finish()


def test_unless_others_have_so_much_less_to_do() -> None:
    d = nodes_with_talks()
    home = went_to(d, "talk0")
    for number in range(3):  # each takes longer than what is cached would
        d.arrive([*range(4000), *range(20_000 + 6000 * number, 26_000 + 6000 * number)], 1, f"long{number}")
    assert {went_to(d, f"long{number}") for number in range(3)} == {0, 1}
    assert went_to(d, "long0") == home != went_to(d, "long1")
    d.finish()
