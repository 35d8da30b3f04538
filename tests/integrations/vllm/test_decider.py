"""What the policy decides for vLLM, on an engine that stands for it."""

from __future__ import annotations

import random
from functools import reduce
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.core.policies.parts.pace import Gaps
from longspan.integrations.vllm.decider import Decider
from longspan.service_level import ServiceLevel
from tests.integrations.vllm.engine import TRUTH, Engine, learned, random_prompt


def test_costs_are_learned_from_steps() -> None:
    engine = Engine()
    assert not engine.decider.is_ready
    learned(engine)
    found, true = engine.decider.costs.model.prefill_coefficients[0], TRUTH.prefill_coefficients[0]
    for name in ("fixed", "per_token", "per_pair"):
        assert getattr(found, name) == pytest.approx(getattr(true, name), rel=0.05)


def test_paces_and_deadlines_follow_the_machine() -> None:
    engine = Engine()
    guessed = engine.decider.view.config.tpot_slo_s
    learned(engine)
    config = engine.decider.view.config
    assert config.tpot_slo_s == pytest.approx(0.015 / 0.07, rel=0.05) and config.tpot_slo_s != guessed
    fixed = learned(Engine(tpot_slo_s=0.08, ttft_slo_floor_s=3.0)).decider.view.config
    assert (fixed.tpot_slo_s, fixed.ttft_slo_floor_s) == (0.08, 3.0)


def test_shorts_do_not_wait_for_a_long_one_which_pauses_and_keeps_its_kv() -> None:
    engine = learned(Engine())
    long = engine.ask("long", 7500, 4)
    engine.run(engine.now + 3.0)
    assert 0 < long.computed < 7500
    computed, begun = long.computed, engine.now
    short = engine.ask("short", 400, 8)
    engine.run(engine.now + 0.5)
    assert short.first_at is not None and short.first_at - begun < 0.5
    assert any(plan.chunks.get("long") == 0 and "short" in plan.begin for plan in engine.plans)
    engine.run()
    assert long.computed >= computed and long.preempted == 0 and long.tokens == 4


def test_a_chunk_is_as_long_as_the_pace_of_the_decodes_beside_it_allows() -> None:
    engine = learned(Engine(tpot_slo_s=0.1))
    engine.ask("long", 7500, 2)
    reader = engine.ask("reader", 100, 60)
    engine.run()
    assert reader.ended_at is not None and reader.first_at is not None
    assert (reader.ended_at - reader.first_at) / 59 <= 0.1


def test_a_request_says_what_it_needs_and_a_lower_priority_of_vllm_goes_first() -> None:
    engine = learned(Engine())
    for name, service in (
        ("patient", ServiceLevel(ttft_s=60.0)), ("hurried", ServiceLevel(ttft_s=20.0)),
        ("urgent", ServiceLevel(priority=1)),
    ):  # fmt: skip
        engine.ask(name, 3000, 2, service)
    engine.run()
    first = {name: engine.all[name].first_at or 0.0 for name in ("urgent", "hurried", "patient")}
    assert sorted(first, key=first.__getitem__) == ["urgent", "hurried", "patient"]


def test_ranks_are_by_what_the_prefix_cache_lacks() -> None:
    engine = learned(Engine())
    busy = engine.ask("busy", 2000, 1)
    engine.step()
    whole, cached = engine.ask("whole", 2000, 1), engine.ask("cached", 4000, 1, cached=3800)
    engine.run()
    assert busy.first_at and whole.first_at and cached.first_at
    assert cached.first_at < whole.first_at

    late = engine.ask("late", 4000, 1)
    engine.ask("other", 2000, 1)
    engine.decider.found("late", 3800)
    late.cached = 3800
    engine.run()
    assert (engine.all["other"].first_at or 0.0) > (late.first_at or 0.0)


@pytest.mark.parametrize("depth", [1, 2])
@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), aborts=st.sampled_from([0.0, 0.3]))
def test_everybody_comes_to_an_end(depth: int, seed: int, aborts: float) -> None:
    """With little memory, too, and whoever is aborted at any time; then nothing is remembered of anybody."""
    draw = random.Random(seed)
    engine = learned(Engine(slots=6500, seats=8, depth=depth))
    for number in range(30):
        name = f"r{number}"
        prompt, most = random_prompt(draw)
        service = ServiceLevel(priority=draw.choice((0, 0, 1)), ttft_s=draw.choice((None, 0.5)))
        engine.ask(name, prompt, most, service)
        for _ in range(draw.randrange(6)):
            engine.step()
        if draw.random() < aborts and engine.alive:
            engine.abort(draw.choice(sorted(engine.alive)))
    engine.run()
    assert all(asked.tokens == asked.most for asked in engine.all.values() if asked.ended_at is not None)
    assert_nothing_is_remembered(engine.decider)


def test_what_is_waited_for_longest_is_bounded_under_a_stream_of_shorts() -> None:
    """A long one that cannot be in time any more gets what the shorts leave."""
    engine = learned(Engine())
    long = engine.ask("long", 7500, 2, ServiceLevel(ttft_s=1.0))
    number = 0
    while long.ended_at is None:
        engine.ask(f"short {number}", 200, 4)
        number += 1
        engine.run(engine.now + 0.4)
        assert number < 400
    assert engine.decider.view.requests.keys() == engine.alive.keys()


def test_decodes_in_columns_are_as_one_by_one() -> None:
    engine = learned(Engine(tpot_slo_s=0.2))
    for number in range(5):
        engine.ask(f"r{number}", 50 + number, 40, ServiceLevel(tpot_s=0.05 * (number + 1)))
    for _ in range(12):
        engine.step()
    decider, now = engine.decider, engine.now + 0.3
    predictor = decider.policy.known(decider.view)
    many = decider.view.decodes.values()
    assert len(many) == 5
    found = predictor.pace.tightest(*np.array([
        (predictor.tpot(each), each.num_output_tokens, now - predictor.feedback.first_at.get(each.id, now))
        for each in many
    ]).T)  # fmt: skip
    each_alone = [predictor.pace.gaps(*predictor.left(each, now)) for each in many]
    assert found == pytest.approx(reduce(Gaps.tightest, each_alone))


def assert_nothing_is_remembered(decider: Decider) -> None:
    view, policy = decider.view, decider.policy
    feedback = policy.known(view).feedback
    left: list[Any] = [
        view.requests, view.decodes, view.prefills, view.placement.begun, view.placement.found, view.found,
        view.waiting, policy._unserved, policy._hopeless, policy._sharing._tags, policy._promises._open,
        feedback._issued, feedback._token_at, feedback.first_at,
    ]  # fmt: skip
    assert [len(each) for each in left] == [0] * len(left)
