"""What a page shows is what the books and the metrics hold, whenever somebody begins to look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.core.actions import Action, KVRange, Segment
from longspan.core.events import Event, RequestArrived
from longspan.metrics.fleet import Fleet, Frame, FrameMaker
from longspan.metrics.fleet.frames import About
from longspan.metrics.fleet.lives import percentile
from longspan.metrics.fleet.watched import Watched as WatchedFleet
from longspan.metrics.kv_slots import KVSlots
from tests.core.cost_models import scaling_model
from tests.core.driver import Driver
from tests.core.random_policy import RandomPolicy
from tests.core.settings import EVERY_POLICY, with_options
from tests.core.test_fleet_properties import rates, talk_on
from tests.core.test_prefix_properties import Talk, run, talks
from tests.event_log.runs import CONFIG, a_busy_day, records_of

MODEL = scaling_model(
    4, fixed=0.02, fixed_step=0.001, per_token=1e-3, per_pair=0.0, decode_fixed=5e-4, decode_step=0.0,
    per_request=1e-4, migration_per_token=1e-6,
)  # fmt: skip


class Watched(Driver):
    """Some look on: from the beginning, always or now and then, and from the middle. They see what the books hold."""

    def __init__(self, *args: Any, joins_at: int = 5, **more: Any) -> None:
        super().__init__(*args, **more)
        self.fleets = [Fleet(self.config.num_instances), Fleet(self.config.num_instances)]
        self.joins_at = joins_at

    def handle(self, event: Event) -> list[Action]:
        actions = super().handle(event)
        for fleet in self.fleets:
            fleet.read(self.now, event, actions, self.scheduler.decisions)
        if len(self.log) == self.joins_at:
            late = Fleet(self.config.num_instances)
            late.open(self.scheduler.inventory(), {}, self.now)
            self.fleets.append(late)
        for number, fleet in enumerate(self.fleets):
            if number != 1 or len(self.log) % 13 == 0:
                self.compare(fleet)
        return actions

    def compare(self, fleet: Fleet) -> None:
        fleet.settle()
        stats = self.scheduler.stats()
        numbers = stats.instances
        assert [fleet.slots.used[number] for number in numbers] == list(stats.kv_tokens_used)
        assert [fleet.slots.cached[number] for number in numbers] == list(stats.kv_tokens_cached)
        assert (fleet.slots.num_holders, len(fleet.waiting)) == (stats.num_running, stats.num_waiting)
        for request in self.scheduler.inventory().requests:
            life = fleet.lives.get(request.id)
            assert (life is None) == (request.end_reason is not None)
            if life is not None:
                assert (life.prompt, life.output) == (request.num_prompt_tokens, request.num_output_tokens)
                assert (life.in_flight, life.preemptions) == (request.in_flight, request.num_preemptions)
                if request.id not in fleet.waiting:
                    assert life.computed == request.num_computed


@settings(max_examples=100)
@given(talks(), st.integers(1, 40), st.integers(0, 2**32))
def test_anything_a_policy_may_do(talk: Talk, joins_at: int, seed: int) -> None:
    """Migrations, preemptions, prefixes that are shared and evicted, aborts while batches run."""
    driver = Watched(talk.config, RandomPolicy(seed), seed=talk.seed, joins_at=joins_at)
    run(driver, talk)
    for fleet in driver.fleets:
        assert not fleet.lives and not fleet.draining and not fleet.spans.batches and not fleet.spans.moves


@settings(max_examples=50)
@given(talks(), st.integers(1, 40), st.integers(0, 2**32), rates)
def test_instances_that_come_and_go(talk: Talk, joins_at: int, seed: int, rate: float) -> None:
    """KV is lost and computed again, work becomes void, instances are emptied."""
    driver = Watched(talk.config, RandomPolicy(seed), seed=talk.seed, joins_at=joins_at)
    talk_on(driver, talk, rate, leaves=True)
    for fleet in driver.fleets:
        assert not fleet.lives and not fleet.draining and not fleet.spans.batches and not fleet.spans.moves
        there = {number for number, state in fleet.instances.items() if state != "lost"}
        assert there == driver.model.serving | driver.drained


def test_a_prompt_goes_on_where_the_end_of_a_prefix_was_lost() -> None:
    """So what is known of the rest stays known: who refers to its beginning alone uses no more of it."""
    slots = KVSlots()
    context: list[tuple[int, int]] = []
    for start, instance in ((0, 0), (2, 1), (4, 2)):
        stored = (KVRange(instance, start, start + 2),)
        slots.store(Segment("a", start, 2, (instance,), stored, tuple(sorted(context)), residence=7))
        context.append((instance, 2))
    slots.release("a")
    slots.lose(2)
    slots.store(Segment("b", 4, 5, (0,), (KVRange(0, 4, 9),), ((0, 2), (1, 2)), residence=7))
    slots.release("b")
    slots.store(Segment("c", 2, 1, (1,), (KVRange(1, 2, 3),), ((0, 2),), residence=8, earlier=((7, 2),)))
    assert (dict(slots.used), dict(slots.cached)) == ({0: 2, 1: 1}, {0: 5, 1: 2})


@pytest.mark.parametrize("policy", EVERY_POLICY)
def test_every_policy(policy: str) -> None:
    config = replace(CONFIG, policy=with_options(policy), prefix_block=4, max_waiting=100)
    driver = Watched(config, seed=1, cost_model=MODEL, joins_at=30)
    for number in range(25):
        driver.arrive(driver.rng.choices(range(3), k=driver.rng.choice((3, 20, 50))), driver.rng.randint(1, 9))
        while driver.model.started and driver.rng.random() < 0.6:
            driver.complete(driver.rng.choice(driver.model.started), stop=0.05)
        if number % 9 == 8:
            driver.abort(driver.rng.choice(driver.alive() or ["nobody"]))
    driver.finish(in_order=False)


# frames


class Page:
    """What a page does with frames."""

    def __init__(self) -> None:
        self.rows: dict[int, list[Any]] = {}
        self.lists: dict[str, dict[Any, Any]] = {name: {} for name in ("spans", "samples", "news", "ended")}

    def take(self, data: bytes) -> dict[str, Any]:
        frame: dict[str, Any] = msgspec.json.decode(data)
        if frame.get("whole"):
            self.rows = {}
        for number in frame.get("gone", ()):
            del self.rows[number]
        self.rows |= {row[0]: row for row in frame.get("requests", ())}
        for name, found in self.lists.items():
            for row in frame.get(name, ()):
                found[tuple(map(str, row)) if name == "news" else row[0]] = row
        return frame


def encode(frame: Frame) -> bytes:
    return msgspec.json.encode(frame)


def test_changes_add_up_to_the_whole() -> None:
    """Whoever comes later has the same before him as whoever came first."""
    driver = a_busy_day()
    fleet = Fleet(CONFIG.num_instances)
    maker, first, late = FrameMaker(fleet, shift=100.0, sample_s=0.01), Page(), Page()
    made = 0
    records = records_of(driver)
    for number, record in enumerate(records):
        fleet.read(*record)
        if number % 7 == 0 or number == len(records) - 1:
            data = encode(maker.changes(record[0]))
            frame, made = first.take(data), made + 1
            late.take(encode(maker.whole()) if made == 20 else data if made > 20 else b"{}")
            assert frame["at"] == round(record[0] + 100.0, 3)
            assert len(first.rows) + frame.get("hidden", 0) == len(fleet.lives)
            assert set(frame["queue"]) <= first.rows.keys()
    assert made > 40 and first.rows == late.rows
    for name, found in first.lists.items():
        assert found and list(found.values())[-40:] == list(late.lists[name].values())[-40:]
    totals = fleet.totals
    assert totals.preemptions == driver.scheduler.stats().num_preemptions > 0
    assert totals.output_tokens == sum(life.outputs for life in driver.lives.values())
    told = {row[1]: row for row in first.lists["ended"].values()}
    for name, life in driver.lives.items():
        if life.ended not in (None, "refused"):
            assert told[name][2] == life.prompt and told[name][3] == life.outputs


@dataclass
class Nothing:
    """Was there before the first record."""

    requests: Sequence[tuple[float, RequestArrived]] = ()
    running: Sequence[Action] = ()


def test_what_was_before_somebody_looked_is_told_as_what_comes_then() -> None:
    """News name their requests, for nothing else may be told of them any more; no span is another's."""
    records = records_of(a_busy_day())
    begin, end = records[0][0], records[-1][0]
    alone = Fleet(CONFIG.num_instances)
    for record in records:
        alone.read(*record)
    maker = FrameMaker(alone)
    maker.changes(end)
    told = maker.whole()
    watched = WatchedFleet(Fleet(CONFIG.num_instances))
    watched.begin_past(Nothing(), begin, end)
    for record in records:
        watched.read_past(*record)
    watched.end_past()
    about = About("model", CONFIG.policy, CONFIG.num_instances, CONFIG.kv_tokens, "1", "log")
    page = Page()
    page.take(watched.frame(end, about, None)[1].removeprefix(b"data: "))
    news = [row[1:] for row in page.lists["news"].values()]
    assert news and news == [list(row[1:]) for row in told.news]
    names = {name for what, _, name, _ in news if what == "preempted"}
    assert names and names <= a_busy_day().lives.keys()
    assert len(page.lists["spans"]) == len(told.spans)
    for now, *rest in records:  # all of that once more
        watched.read(now + end, *rest)
    page.take(watched.frame(2 * end, about, None)[1].removeprefix(b"data: "))
    assert len(page.lists["spans"]) == 2 * len(told.spans)


def test_spans_are_what_ran() -> None:
    driver = a_busy_day()
    fleet = Fleet(CONFIG.num_instances)
    tokens = 0
    spans = {}
    for record in records_of(driver):
        fleet.read(*record)
        spans |= {span.number: span for span in fleet.spans.take()}
        tokens += sum([s.length for action in record[2] if hasattr(action, "segments") for s in action.segments])
    assert sum([span.tokens for span in spans.values() if span.kind != "move"]) == tokens
    busy: dict[int, float] = {}
    for span in sorted(spans.values(), key=lambda span: span.start):
        for number in span.group:
            assert span.start >= busy.get(number, 0.0) - 1e-9  # an instance does one thing at a time
            busy[number] = span.end


def test_few_are_shown_and_the_others_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longspan.metrics.fleet.frames.MOST_RUNNING", 2)
    monkeypatch.setattr("longspan.metrics.fleet.frames.MOST_WAITING", 3)
    driver = Driver(CONFIG)
    for _ in range(12):
        driver.arrive(30, 3)
    fleet = Fleet(CONFIG.num_instances)
    for record in records_of(driver):
        fleet.read(*record)
    frame = FrameMaker(fleet).changes(driver.now)
    shown = 3 + min(2, frame.running)
    assert len(frame.queue) == 3 and len(frame.requests) == shown and frame.hidden == 12 - shown
    assert frame.running + frame.waiting == 12


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(0.01, 0.99))
def test_percentiles(values: list[float], share: float) -> None:
    found = percentile(sorted(values), share)
    assert found is not None and sum([value <= found for value in values]) >= share * len(values) - 1e-9
    assert sum([value < found for value in values]) <= share * len(values)
    assert percentile([], share) is None
