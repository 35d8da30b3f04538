"""The policy `longspan`: on how many instances a prompt is computed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.config import SchedulerConfig
from longspan.core.actions import Action
from longspan.core.costs.cost_model import Chunk, FittedCostModel
from longspan.core.events import Event
from longspan.core.policies.chunked.predictor import Predictor
from longspan.core.policies.chunked.teams.width import plan_evenly
from longspan.core.policies.longspan.width import ElasticPredictor, ElasticWidth, team_size, team_sizes

from .cost_models import cost_models, scaling_model
from .longspan import Run, arrival, plain, played
from .reading import batches
from .settings import with_options
from .test_medha_properties import Tally
from .test_properties import Workload, run, workloads

DEAR = {"fixed_step": 0.06}
"""Each instance more adds 60 ms to an iteration."""


def groups(found: Run, name: str) -> list[tuple[int, ...]]:
    """Who computed each chunk of a prompt."""
    segments = [segment for _, batch, _ in found.took for segment in batch.segments if segment.request_id == name]
    return [tuple(sorted(segment.compute)) for segment in segments if segment.length > 1]


def alone(policy: str = "longspan", **changes: float) -> Run:
    return played([arrival(0.0, "long", 40_000, 3)], plain(4, **changes), num_instances=4, policy=policy)


def test_a_lone_long_prompt_has_everything() -> None:
    found = alone()
    assert set(groups(found, "long")) == {(0, 1, 2, 3)}
    assert found.played["long"].ttft_s < 40.0 / 4 * 1.1
    assert alone(policy="longspan:team=2").played["long"].ttft_s > 19.0
    assert set(map(len, groups(alone(policy="longspan:team=2"), "long"))) == {2}


def test_no_team_where_none_is_wanted() -> None:
    assert set(map(len, groups(alone("longspan:team=1"), "long"))) == {1}


def test_a_dear_ring_pays_for_a_lone_prompt_and_not_beside_decodes() -> None:
    """Alone iterations may be as long as makes the ring cheap; beside a decode most of each would go to it."""
    assert alone(**DEAR).played["long"].ttft_s < alone("longspan:team=1", **DEAR).played["long"].ttft_s / 3
    beside = [arrival(0.0, "decoding", 10, 3000), arrival(1.0, "long", 20_000, 3)]
    assert set(map(len, groups(played(beside, plain(4, **DEAR), num_instances=4), "long"))) == {1}
    assert set(map(len, groups(played(beside, plain(4), num_instances=4), "long"))) == {4}


def test_a_prompt_of_one_iteration_runs_on_one_instance() -> None:
    found = played([arrival(0.0, "short", 60)], plain(4), num_instances=4)
    assert groups(found, "short") == [(0,)]


def test_its_kv_is_kept_evenly_while_it_is_computed() -> None:
    """Of each chunk but the last: no instance has much more than another, nor is one left without a slot."""
    found = alone()
    segments = [segment for _, batch, _ in found.took for segment in batch.segments if segment.length > 1]
    assert sum(segment.length for segment in segments) == 40_000
    kept = dict.fromkeys(range(4), 0)
    for segment in segments[:-1]:
        for stored in segment.store:
            kept[stored.instance] += stored.length
    assert max(kept.values()) - min(kept.values()) <= 128 + 4 * len(found.took)  # the headroom is the last one's
    assert len(segments[-1].store) == 1


@given(
    st.integers(1, 500), st.integers(0, 50), st.lists(st.integers(-5, 200), min_size=2, max_size=5)
)
def test_a_plan_is_within_the_rooms_and_even(tokens: int, headroom: int, rooms: list[int]) -> None:
    team = tuple(range(len(rooms)))
    planned = plan_evenly(tokens, headroom, dict(enumerate(rooms)), team)
    able = [max(0, room) for room in rooms]
    if sum(able) < tokens + headroom:
        assert planned is None
        return
    assert planned is not None
    assert [each.start for each in planned] == [0, *[each.end for each in planned[:-1]]]
    assert planned[-1].end == tokens
    shares = {each.instance: each.length for each in planned}
    assert all(length <= able[number] for number, length in shares.items())
    left = [able[number] - shares.get(number, 0) for number in team]
    assert sum(left) >= headroom
    fair = -(-(tokens + headroom) // len(team))
    if min(able) >= fair:  # nobody is short of room
        assert max(shares.values()) <= fair


def wide(instances: int = 8) -> ElasticWidth:
    config = SchedulerConfig(num_instances=instances, tpot_slo_s=0.1)
    return ElasticWidth(Predictor(plain(instances, fixed_step=0.002), config, gain=0.1))


def test_many_others_make_it_narrow() -> None:
    """What a ring wastes, each of the others waits for."""
    width = wide()
    sizes = []
    for others in (0, 1, 3, 10, 1000):
        width.num_others = others
        sizes.append(width.size(20.0, left_s=30.0))
    assert sizes == [8, 4, 4, 4, 1]
    width.num_others, width.is_decoding = 0, True
    assert width.size(20.0, left_s=30.0) == 4


def test_who_has_time_enough_needs_no_team_beside_others() -> None:
    """What others wait for would be wasted."""
    width = wide()
    assert width.size(2.0, left_s=100.0) == 8
    width.num_others = 1
    assert width.size(2.0, left_s=10.0) == 4
    assert width.size(2.0, left_s=20.0) == 1
    assert width.size(20.0, left_s=-5.0) == 4  # it is late


@pytest.mark.parametrize(
    ("instances", "size"), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 4), (6, 3), (7, 4), (8, 4), (9, 3)]
)
def test_the_size_of_teams_beside_others(instances: int, size: int) -> None:
    assert team_size(instances, None) == size
    assert team_size(instances, 2) == min(size, 2)


def teams_where(factor: Callable[[int], float]) -> list[tuple[int, ...]]:
    """Those that long prompts get on eight instances, each of which takes `factor` times as long for everything."""
    rng, arrivals = random.Random(2), []
    for n in range(320):  # as many at once as there are instances, so that something is learned of each
        arrivals.append(arrival(0.5 * (n // 8), f"r{n}", rng.randint(300, 400), 10))
    arrivals += [arrival(20.0 + 4.0 * n, f"long{n}", 12_000, 10) for n in range(5)]
    arrivals.sort(key=lambda each: each[0])
    found = played(arrivals, plain(8), num_instances=8, slowdown=lambda batch: max(map(factor, batch.group)))
    return [group for n in range(5) for group in groups(found, f"long{n}") if len(group) > 1]


@pytest.mark.parametrize("slow", [{0}, {3}, {6}, {1, 5}])
def test_who_is_slow_is_in_no_team(slow: set[int]) -> None:
    """Some of eight instances take twice as long; what is learned of them, teams do without them."""
    teams = teams_where(lambda instance: 1.0 + (instance in slow))
    assert teams and not any(slow & {*team} for team in teams)


@pytest.mark.parametrize("quick", [0, 3, 6])
def test_who_is_quick_leaves_teams_as_they_are(quick: int) -> None:
    """Beside it alone, all others would be too slow for any team."""
    teams = teams_where(lambda instance: 0.5 if instance == quick else 1.0)
    assert {number for team in teams for number in team} >= {*range(8)} - {quick}


@given(st.integers(1, 64), st.one_of(st.none(), st.integers(1, 64)))
def test_sizes_divide_the_instances(instances: int, most: int | None) -> None:
    sizes = team_sizes(instances, most)
    assert sizes == [n for n in range(1, min(instances, most or instances) + 1) if instances % n == 0]


def test_alone_tries_the_sizes_that_there_are_once() -> None:
    asked: list[int] = []

    class Counted(FittedCostModel):
        def prefill(self, chunks: Any, num_instances: int) -> float:
            chunks = tuple(chunks)
            if chunks == (Chunk(9_000),):
                asked.append(num_instances)
            return super().prefill(chunks, num_instances)

    known = plain(12)
    model = Counted(**{name: getattr(known, name) for name in FittedCostModel.__dataclass_fields__})
    predictor = ElasticPredictor(model, SchedulerConfig(num_instances=12))
    predictor.sizes = team_sizes(12, 6)
    for _ in range(3):
        assert predictor.alone(9_000) == pytest.approx(known.prefill((Chunk(9_000),), 6))
    assert asked == [1, 2, 3, 4, 6]


class Teams(Tally):
    """Counts the chunks that several computed."""

    wide = 0

    def handle(self, event: Event) -> list[Action]:
        actions = super().handle(event)
        self.wide += sum(len(s.compute) > 1 for batch in batches(actions) for s in batch.segments)
        return actions


def test_everybody_comes_to_an_end_in_teams() -> None:
    """Whatever is drawn; also where rings are free and tokens dear, so that teams are the rule."""
    counted: list[int] = []

    @settings(max_examples=30, deadline=None)
    @given(workloads(), cost_models(), st.sampled_from([None, 1, 2]), st.sampled_from([1e-6, 1e-3, 0.05]))
    def check(workload: Workload, drawn: FittedCostModel, team: int | None, tpot_slo_s: float) -> None:
        for model in (drawn, scaling_model(5, fixed=1e-9, fixed_step=0.0, per_token=1.0)):
            policy = with_options("longspan", team=team)
            config = replace(workload.config, tpot_slo_s=tpot_slo_s, policy=policy, overload="off")
            teams = Teams(config, seed=workload.seed, cost_model=model)
            run(teams, workload)
            counted.append(teams.wide)

    check()
    assert sum(counted) > 0
