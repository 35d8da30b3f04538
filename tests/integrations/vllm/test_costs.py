"""Costs that are learned from steps."""

from __future__ import annotations

import random

import pytest

from longspan.core.policies.chunked.predictor import chunk_floor
from longspan.integrations.vllm.costs import LearnedCosts, Work, cost_model
from tests.integrations.vllm.engine import TRUTH


def some_work(draw: random.Random) -> Work:
    tokens, context = draw.choice((0, 40, 200, 900)), draw.choice((0, 500, 6000))
    decodes = draw.choice((0, 1, 5, 30)) or (not tokens)
    return Work(tokens, tokens * (tokens + 2 * context), decodes, decodes * draw.choice((50, 900)))


def learned(draw: random.Random, noise: float, many: int = 200) -> LearnedCosts:
    costs = LearnedCosts()
    for _ in range(many):
        work = some_work(draw)
        costs.note(work, work.seconds(TRUTH) * draw.uniform(1 - noise, 1 + noise))
        costs.renewed(False)
    return costs


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_what_steps_will_take_is_known(noise: float) -> None:
    draw = random.Random(0)
    costs = learned(draw, noise)
    assert costs.known
    for _ in range(100):
        work = some_work(draw)
        assert work.seconds(costs.model) == pytest.approx(work.seconds(TRUTH), rel=0.02 + 1.5 * noise)


def test_nothing_is_believed_before_both_kinds_of_steps_were_seen() -> None:
    costs = LearnedCosts()
    for _ in range(2):
        costs.note(Work(100, 10_000), 0.1)
    for _ in range(50):
        costs.note(Work(decodes=3, context=300), 0.02)
        assert not costs.renewed(True)
    costs.note(Work(100, 10_000), 0.1)
    assert costs.renewed(False) and costs.known


def test_prompts_alone_will_do_where_nobody_decodes() -> None:
    costs = LearnedCosts()
    for number in range(12):
        work = Work(100 * (number % 3 + 1), 0)
        costs.note(work, work.seconds(TRUTH))
        costs.renewed(False)
    assert costs.known


def test_a_model_that_is_the_same_is_no_other_one_and_a_machine_that_changes_makes_one() -> None:
    costs, draw = learned(random.Random(1), 0.02), random.Random(2)
    before = costs.model
    assert not any(_noted(costs, some_work(draw), 1.0) for _ in range(300))
    assert costs.model is before
    assert any([_noted(costs, some_work(draw), 2.0, is_off=True) for _ in range(1500)])
    work = Work(400, 400 * 400)
    assert work.seconds(costs.model) == pytest.approx(2 * work.seconds(TRUTH), rel=0.2)


def _noted(costs: LearnedCosts, work: Work, slowdown: float, is_off: bool = False) -> bool:
    costs.note(work, slowdown * work.seconds(TRUTH))
    return costs.renewed(is_off)


def test_two_small_coefficients_make_no_chunk_enormous() -> None:
    assert chunk_floor(cost_model(0.01, 1e-4, 1e-15, 1e-4, 1e-6)) <= 65


def test_steps_without_work_or_time_are_not_counted() -> None:
    costs = LearnedCosts()
    for _ in range(20):
        costs.note(Work(), 0.1)
        costs.note(Work(10, 100, 1, 5), 0.0)
    assert not costs.renewed(True)
