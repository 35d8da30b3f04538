"""The policy `medha`: how large chunks are, and what is predicted for that."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.config import SchedulerConfig
from longspan.core.actions import RunBatch
from longspan.core.books.request import Request
from longspan.core.costs.analytic import analytic_cost_model
from longspan.core.costs.cost_model import Chunk, FittedCostModel
from longspan.core.policies.chunked.iteration import Iteration
from longspan.core.policies.chunked.predictor import Predictor, chunk_floor, tokens_per_shard
from longspan.core.policies.parts.longest import longest
from longspan.service_level import ServiceLevel

from .cost_models import cost_models
from .medha import H200, LLAMA_8B, driver, model
from .reading import lengths


def test_an_iteration_is_filled_up_to_the_target() -> None:
    d = driver()
    assert lengths(d.arrive(120, 3, "a")) == {"a": 50}
    assert lengths(d.complete()) == {"a": 50}
    d.arrive(100, 3, "b")
    # 20 tokens are left of a, and take 20 ms.
    assert lengths(d.complete()) == {"a": 20, "b": 30}
    # The decode of a comes first, and takes one.
    assert lengths(d.complete()) == {"a": 1, "b": 49}


def test_the_tightest_tpot_in_the_batch_sets_the_target() -> None:
    d = driver()
    d.arrive(10, 5, "lax", service=ServiceLevel(tpot_s=0.2005))
    d.arrive(900, 5, "long")
    assert lengths(d.complete()) == {"lax": 1, "long": 199}
    d.arrive(5, 5, "tight", service=ServiceLevel(tpot_s=0.0205, priority=1))
    d.complete()
    assert lengths(d.complete()) == {"lax": 1, "tight": 1, "long": 18}


def test_chunks_shrink_as_context_grows() -> None:
    d = driver(model(per_pair=1e-5))
    sizes = [lengths(d.arrive(900, 1, "a"))["a"]]
    while d.model.started:
        actions = d.complete()
        if actions and isinstance(actions[0], RunBatch):
            sizes.append(lengths(actions)["a"])
    assert sum(sizes) == 900
    assert sizes[:-1] == sorted(sizes[:-1], reverse=True)
    assert sizes[0] > 2 * sizes[-2]


@settings(max_examples=150)
@given(
    cost_model=cost_models(),
    decodes=st.lists(st.integers(1, 500), max_size=4),
    others=st.lists(st.tuples(st.integers(1, 50), st.integers(0, 400)), max_size=3),
    here=st.integers(0, 400),
    there=st.integers(0, 400),
    most=st.integers(1, 120),
    target=st.sampled_from([1e-4, 0.01, 0.05, 1.0, 100.0]),
)
def test_the_chunk_is_what_trying_all_sizes_finds(
    cost_model: FittedCostModel,
    decodes: list[int],
    others: list[tuple[int, int]],
    here: int,
    there: int,
    most: int,
    target: float,
) -> None:
    config = SchedulerConfig(num_instances=2, tpot_slo_s=target)
    predictor = Predictor(cost_model, config)
    iteration = Iteration(predictor, (0, 1))
    for number, context in enumerate(decodes):
        request = Request(f"d{number}", context, 9, 0.0, number, num_computed=context)
        iteration.add_decodes([(request, 0)], {request.id: (number % 2,)}, lambda _: ())
    for number, (length, context) in enumerate(others):
        iteration.add_chunk(Request(f"c{number}", 999, 9, 0.0, number), 0, ((0, context),) if context else (), length)
    holders = tuple((number, tokens) for number, tokens in ((0, here), (1, there)) if tokens)
    found = iteration.largest_chunk(0, holders, most, 1e9)
    allowed = predictor.target()
    fitting = [length for length in range(1, most + 1) if iteration.seconds_with(0, holders, length) <= allowed]
    assert found == len(fitting) == max(fitting, default=0)


@given(
    st.integers(0, 300),
    st.lists(st.tuples(st.integers(1, 300), st.sampled_from([0.0, 1e-6, 0.01, 5.0])), max_size=5),
    st.sampled_from([0.0, 1e-3, 1.0]),
    st.floats(0.0, 20.0),
)
def test_the_longest_is_found_whatever_the_curve(
    most: int, kinks: list[tuple[int, float]], slope: float, limit: float
) -> None:
    """Lines, steps, parabolas, and nothing at all."""

    def seconds(length: int) -> float:
        return slope * length + sum(cost * max(0, length - kink) ** (kink % 3) for kink, cost in kinks if length > kink)

    assert longest(most, seconds, limit) == sum(seconds(length) <= limit for length in range(1, most + 1))


@settings(max_examples=40)
@given(cost_models(), st.integers(1, 1200), st.data())
def test_prediction_of_a_whole_prefill_is_the_sum_of_its_chunks(
    cost_model: FittedCostModel, tokens: int, data: st.DataObject
) -> None:
    predictor = Predictor(cost_model, SchedulerConfig(num_instances=1, max_batch_tokens=400))
    total, context = 0.0, 0
    while context < tokens:
        fits = [
            length
            for length in range(1, min(400, tokens - context) + 1)
            if cost_model.prefill((Chunk(length, context),), 1) <= predictor.target()
        ]
        length = min(tokens - context, 400, max(len(fits), predictor.floor))
        total += cost_model.prefill((Chunk(length, context),), 1)
        context += length
    assert predictor.prefill(tokens) == pytest.approx(total)
    assert predictor.prefill(data.draw(st.integers(0, tokens))) <= predictor.prefill(tokens) * (1 + 1e-9)


def test_beyond_a_shard_the_context_is_shared_out() -> None:
    """Predicted by hand: chunks up to the shard's end behind all that is there, later ones behind one full shard."""
    cost = model(per_pair=1e-5, fixed_step=0.0)
    predictor = Predictor(cost, SchedulerConfig(num_instances=3, kv_tokens=500), kvp_tokens_per_shard=100)
    last = predictor.prefill(200) - predictor.prefill(100)
    assert predictor.prefill(300) - predictor.prefill(200) == pytest.approx(last)
    assert predictor.prefill(100) < last < cost.prefill((Chunk(100, 100),), 1) + 1e-3


def test_the_floor_is_the_machines_balance_over_the_group_size() -> None:
    """989 TFLOPS over 4.8 TB/s is 206 operations a byte; four query heads share a KV head: 52 tokens."""
    assert chunk_floor(analytic_cost_model(LLAMA_8B, H200, 1)) == 52


def test_a_shard_is_as_long_as_a_decode_can_read_in_time() -> None:
    cost = analytic_cost_model(LLAMA_8B, H200, 4)
    config = SchedulerConfig(num_instances=4, kv_tokens=900_000, tpot_slo_s=0.02)
    tokens = tokens_per_shard(cost, config, 0.02)
    assert cost.decode(1, tokens, 1, 1) <= 0.02
    assert 225_000 <= tokens < 900_000
    assert tokens_per_shard(cost, SchedulerConfig(num_instances=4, kv_tokens=900_000), 10.0) == 900_000


def test_the_highest_in_rank_gets_a_chunk_even_when_decodes_take_all_the_time() -> None:
    d = driver(model(per_request=0.06, per_pair=1e-9))
    d.arrive(10, 50, "a")
    actions = d.arrive(500, 5, "b") or d.complete()
    assert lengths(actions)["b"] >= 1
    assert lengths(d.complete())["b"] >= 1


def test_a_decode_without_a_slot_keeps_nobody_else_from_the_batch() -> None:
    """All slots are taken or reserved, and a batch has one request: the senior one cannot grow, the other can go on."""
    d = driver(kv_tokens=4, decode_headroom=0, max_batch_requests=1, max_batch_tokens=1)
    d.arrive(2, 2, "old")
    d.arrive(2, 1, "new", service=ServiceLevel(priority=1))
    assert lengths(d.complete()) == {"old": 1, "new": 1}
    assert lengths(d.complete()) == {"new": 1}
    d.finish()
    assert d.scheduler.stats().num_preemptions == 0


def test_no_iteration_is_mostly_fixed_cost() -> None:
    """A TPOT of 1 ms where each iteration takes 40 anyway: a fifth of each still goes to the prompt."""
    d = driver(model(fixed=0.0404), tpot_slo_s=1e-3)
    d.arrive(200, 3, "a")
    assert lengths(d.log[0][2])["a"] == 10  # 10 of 50 ms
