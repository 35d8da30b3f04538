"""Shapes are chosen by what was measured, on machines that are made up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.core.costs.cost_model import Chunk
from longspan.tuning.choice import WEIGHTS, choose_shape
from longspan.tuning.shapes import Shape, possible_shapes
from longspan.tuning.speed import modelled
from tests.tuning.speeds import speeds

TWO_CORES = possible_shapes(2, 30, 2)


def test_two_cores_are_cut_up_in_three_ways() -> None:
    assert list(TWO_CORES) == [Shape(1, 1, 2), Shape(1, 2, 1), Shape(2, 1, 1)]


@given(cores=st.integers(1, 256), layers=st.integers(1, 80), copies=st.integers(0, 300))
def test_every_shape_has_all_cores_and_fits(cores: int, layers: int, copies: int) -> None:
    shapes = possible_shapes(cores, layers, copies)
    assert shapes[0] == Shape(1, 1, cores)
    assert len(set(shapes)) == len(shapes) <= 20
    for shape in shapes:
        assert shape.workers * shape.threads == cores
        assert shape.pp <= layers
        assert shape.instances <= max(1, copies)


def test_where_two_threads_are_twice_as_fast_one_instance_has_both() -> None:
    choice = choose_shape(TWO_CORES, speeds(1, 2), 30, "balanced")
    assert choice.shape == Shape(1, 1, 2)
    assert choice.figures.keys() == set(TWO_CORES)
    assert "long alone" in choice.reason and "2 instances of 1 thread +" in choice.reason


def test_where_a_second_thread_is_worth_nothing_two_workers_have_one_each() -> None:
    for objective in WEIGHTS:
        choice = choose_shape(TWO_CORES, speeds(1, 2, gain=lambda threads: 1.0), 30, objective)
        assert choice.shape.threads == 1


def test_a_long_prompt_alone_goes_through_two_stages_in_about_half_the_time() -> None:
    figures = choose_shape(TWO_CORES, speeds(1, 2, gain=lambda threads: 1.0), 30, "balanced").figures
    alone = figures[Shape(1, 1, 2)]["long alone"]
    assert 0.5 * alone < figures[Shape(1, 2, 1)]["long alone"] < 0.6 * alone


def test_workers_that_slow_each_other_down_are_not_chosen() -> None:
    def gain(threads: int) -> float:
        return threads**0.8

    assert choose_shape(TWO_CORES, speeds(1, 2, gain=gain, crowding=1.6), 30, "balanced").shape == Shape(1, 1, 2)


def test_the_same_costs_give_the_same_choice() -> None:
    measured = speeds(1, 2, gain=lambda threads: threads**0.5)
    assert choose_shape(TWO_CORES, measured, 30, "latency") == choose_shape(TWO_CORES, measured, 30, "latency")


@given(
    token=st.floats(1e-6, 1e-2), fixed=st.floats(1e-4, 0.2), decode=st.floats(1e-4, 0.2), pair=st.floats(0.0, 1e-6),
    scaling=st.floats(0.0, 1.0), crowding=st.floats(1.0, 3.0),
)  # fmt: skip
def test_a_model_says_what_was_measured(
    token: float, fixed: float, decode: float, pair: float, scaling: float, crowding: float
) -> None:
    """Of one worker alone, but for what the engine itself takes; and others are slower by crowding."""
    fixed = max(fixed, decode)
    measured = speeds(1, 2, token_s=token, fixed_s=fixed, decode_s=decode, pair_s=pair,
                      gain=lambda threads: threads**scaling, crowding=crowding)  # fmt: skip
    alone = modelled(Shape(1, 1, 2), measured, 30)
    (of_two,) = [speed for speed in measured if speed.threads == 2]
    assert alone.prefill((Chunk(256, 768),), 1) == pytest.approx(of_two.later_chunk_s, abs=4e-3, rel=0.02)
    assert alone.decode(8, 0, 1, 1) == pytest.approx(of_two.decodes_s, rel=0.01)
    crowded = modelled(Shape(2, 1, 1), measured, 30)
    (of_one,) = [speed for speed in measured if speed.threads == 1]
    assert crowded.prefill((Chunk(256),), 1) == pytest.approx(crowding * of_one.chunk_s, abs=4e-3, rel=0.02)
