"""The simulated durations: small cases by hand, and what must hold for all."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.core.actions import KVRange, MigrateKV, RunBatch, Segment
from longspan.core.costs.batch_shape import BatchShape
from longspan.core.costs.cost_model import Chunk
from longspan.simulator.cost import IterationCost
from longspan.simulator.fleet import Fleet, SimulatedModel
from longspan.simulator.hardware import A800_80G, HARDWARE
from longspan.simulator.machine import Machine
from longspan.simulator.models import MODELS
from longspan.simulator.spread import evenly_spread

from .examples import TINY, cost_of, machine

# Of the tiny model, by hand: one layer's matrices are 8x16 (4+2*2 heads of 2), 8x8, 8x32, 16x8; the head is 8x32.
LAYER_PARAMETERS = 128 + 64 + 256 + 128
HEAD_PARAMETERS = 256
LAYERS = 2
PAIR_FLOPS = 4 * 4 * 2  # in one layer: 4 heads of 2, a product and a sum, 2 flops each
KV_BYTES = 2 * 2 * 2 * 2  # in one layer: keys and values, 2 heads of 2, 2 bytes


def prefill(*lengths: int, context: int = 0, instances: int = 1) -> RunBatch:
    chunks = tuple(Chunk(length, context) for length in lengths)
    return evenly_spread(BatchShape(num_instances=instances, chunks=chunks))


def decode(requests: int, context: int, instances: int = 1, masters: int = 1) -> RunBatch:
    shape = BatchShape(
        num_instances=instances, num_requests=requests, context_tokens=requests * context, num_masters=masters
    )
    return evenly_spread(shape)


def decode_segment(context: dict[int, int], master: int, name: str = "a") -> Segment:
    start = sum(context.values())
    return Segment(name, start, 1, (master,), (KVRange(master, start, start + 1),), tuple(context.items()))


def test_arithmetic_of_a_prompt_on_one_instance() -> None:
    """Causal attention has half of the pairs; the head runs for the last token alone."""
    seconds = cost_of(machine({"flops": 1.0})).batch(prefill(10))
    expected = LAYERS * (2 * 10 * LAYER_PARAMETERS + 55 * PAIR_FLOPS) + 2 * HEAD_PARAMETERS
    assert seconds.device == pytest.approx(expected)
    assert seconds.host == 0.0


def test_a_decode_reads_weights_once_and_each_context() -> None:
    """Activations, norms, rotary embedding and the gate also pass through memory: linear in rows, and small."""
    cost = cost_of(machine({"memory_bandwidth": 1.0}))
    one, two = (cost.batch(decode(requests, 1000)).device for requests in (1, 2))
    weights = 2 * (LAYERS * LAYER_PARAMETERS + HEAD_PARAMETERS)
    context = LAYERS * 1001 * KV_BYTES
    row = two - one - context
    assert one == pytest.approx(weights + context + row)
    assert 0 < row < 0.1 * context


def test_a_chunk_meets_all_its_context() -> None:
    cost = cost_of(machine({"flops": 1.0}))
    behind, alone = (cost.batch(prefill(4, context=context)).device for context in (100, 0))
    assert behind - alone == pytest.approx(LAYERS * 4 * 100 * PAIR_FLOPS)


def test_requests_are_summed_one_by_one() -> None:
    """A chunk of 32 tokens behind a million beside one of 480 at its beginning: no average over the two, which is off
    by a factor of fifteen."""
    cost = cost_of(machine({"flops": 1.0}))

    def attention(*segments: Segment) -> float:
        rows = sum(segment.length for segment in segments)
        return cost.batch(RunBatch(0, (0,), segments)).device - LAYERS * 2 * rows * LAYER_PARAMETERS

    late = Segment("late", 1_000_000, 32, (0,), (KVRange(0, 1_000_000, 1_000_032),), ((0, 1_000_000),), emits=False)
    early = Segment("early", 0, 480, (0,), (KVRange(0, 0, 480),), (), emits=False)
    assert attention(late, early) == pytest.approx(attention(late) + attention(early))


def test_two_instances_share_a_prompt_evenly() -> None:
    cost = cost_of(machine({"flops": 1.0}), instances=2)
    alone, shared = (cost.batch(prefill(1000, instances=instances)).device for instances in (1, 2))
    head = 2 * HEAD_PARAMETERS
    assert shared - head == pytest.approx((alone - head) / 2)


def test_the_ring_hides_behind_attention_or_the_other_way_round() -> None:
    block_bytes = 500 * KV_BYTES
    attention = 1000 * 1001 / 2 / 2 * PAIR_FLOPS  # of one of two instances
    dense = 2 * 500 * LAYER_PARAMETERS

    def layer(bandwidth: float, *, overlaps: bool = True) -> float:
        sheet = {"flops": 1.0, "link_bandwidth": bandwidth}
        cost = cost_of(machine(sheet, {"overlaps_ring": overlaps}), instances=2)
        return (cost.batch(prefill(1000, instances=2)).device - 2 * HEAD_PARAMETERS) / LAYERS

    fast, slow = block_bytes / attention * 100, block_bytes / attention / 100
    assert layer(fast) == pytest.approx(dense + attention)
    assert layer(slow) == pytest.approx(dense + attention / 2 + block_bytes / slow)
    assert layer(slow, overlaps=False) == pytest.approx(dense + attention + block_bytes / slow)


def test_queries_go_out_and_partial_results_come_back() -> None:
    cost = cost_of(machine({"link_bandwidth": 1.0}, {"exchange_s": 1000.0}), instances=2)
    remote = RunBatch(0, (0, 1), (decode_segment({1: 50}, master=0),))
    query, reply = 8 * 2, (8 + 4) * 4  # 4 heads of 2, in 2 bytes; the same and 4 log-sum-exps, in 4
    assert cost.batch(remote).device == pytest.approx(LAYERS * (2 * 1000 + query + reply))
    local = RunBatch(0, (0,), (decode_segment({0: 50}, master=0),))
    assert cost.batch(local).device == pytest.approx(0.0, abs=1e-9)


def test_context_that_is_lent_is_attended_to_by_all() -> None:
    """As if it lay evenly on those who compute; on one node, and where the machine lends."""
    new, context = 400, 1000

    def seconds(lies: dict[int, int], sheet: dict[str, float], *, lends: bool = True) -> float:
        store = (KVRange(0, context, context + new),)
        chunk = Segment("a", context, new, (0, 1), store, tuple(lies.items()))
        on = replace(machine(sheet), lends_context=lends)
        return cost_of(on, instances=2).batch(RunBatch(0, (0, 1), (chunk,))).device

    one, even = {0: context}, {0: context // 2, 1: context // 2}
    shared = seconds(even, {"flops": 1.0})
    assert seconds(one, {"flops": 1.0}) == pytest.approx(shared)
    other_half = LAYERS * new // 2 * context * PAIR_FLOPS
    for sheet, lends in (({"flops": 1.0}, False), ({"flops": 1.0, "devices_per_node": 1}, True)):
        assert seconds(one, sheet, lends=lends) == pytest.approx(shared + other_half)
    assert seconds(one, {"link_bandwidth": 1.0}) == pytest.approx(LAYERS * context * KV_BYTES)


def test_the_slowest_instance_counts() -> None:
    cost = cost_of(machine({"memory_bandwidth": 1.0}), instances=2)
    even = cost.batch(RunBatch(0, (0, 1), (decode_segment({0: 500, 1: 500}, master=0),))).device
    skewed = cost.batch(RunBatch(0, (0, 1), (decode_segment({0: 900, 1: 100}, master=0),))).device
    assert skewed - even == pytest.approx(LAYERS * 400 * KV_BYTES)


def test_more_masters_share_the_dense_layers() -> None:
    cost = cost_of(machine({"flops": 1.0}), instances=2)
    one, two = (cost.batch(decode(64, 0, instances=2, masters=masters)).device for masters in (1, 2))
    assert two == pytest.approx(one / 2, rel=0.01)


def test_tensor_parallel_devices_share_everything_and_reduce_twice_a_layer() -> None:
    one, two = (cost_of(machine({"flops": 1.0}), tp=tp).batch(prefill(10)).device for tp in (1, 2))
    assert two == pytest.approx(one / 2)
    reduce = cost_of(machine({"link_bandwidth": 1.0}, {"allreduce_s": 1000.0}), tp=2)
    assert reduce.batch(prefill(10)).device == pytest.approx(LAYERS * 2 * (1000 + 10 * 8 * 2))


def test_what_the_host_prepares() -> None:
    overheads = {"iteration_s": 1.0, "request_s": 10.0, "instance_s": 100.0, "prompts_s": 1000.0}
    cost = cost_of(machine({}, overheads), instances=4)
    assert cost.batch(decode(3, 8, instances=4)).host == 1 + 3 * 10 + 3 * 100
    assert cost.batch(prefill(8, 8)).host == 1 + 2 * 10 + 1000


def test_masters_that_share_memory_slow_each_other_down() -> None:
    """When they read weights."""
    free, shared = (cost_of(machine({"memory_bandwidth": 1.0}, {"contention": c}), instances=3) for c in (0.0, 0.25))
    alone = free.batch(decode(3, 0, instances=3, masters=3)).device
    for masters, slower in ((1, 1.0), (2, 1.25), (3, 1.5)):
        batch = decode(masters, 0, instances=masters, masters=masters)
        assert free.batch(batch).device == pytest.approx(alone, rel=0.01)
        assert shared.batch(batch).device == pytest.approx(slower * alone, rel=0.01)


def test_a_migration_goes_over_its_link() -> None:
    sheet = {"link_bandwidth": 100.0, "network_bandwidth": 10.0, "devices_per_node": 2}
    cost = cost_of(machine(sheet, {"migration_s": 5.0, "exchange_s": 1.0, "network_s": 2.0}), instances=4)

    def seconds(source: int, target: int) -> float:
        return cost.duration(MigrateKV(0, "a", source, target, ((0, 30), (60, 90)))).total

    sent = 60 * LAYERS * KV_BYTES
    assert seconds(0, 1) == pytest.approx(5 + 1 + sent / 100)
    assert seconds(1, 2) == pytest.approx(5 + 1 + 2 + sent / 10)


MACHINES = st.sampled_from(sorted(HARDWARE)).map(HARDWARE.__getitem__)
FITTING = st.sampled_from(["lwm-1m", "llama-3-8b", "qwen2.5-7b", "smollm2-135m"]).map(MODELS.__getitem__)


@given(MACHINES, FITTING, st.integers(1, 4), st.integers(1, 64), st.integers(0, 10**6), st.integers(1, 10**5))
@settings(max_examples=60)
def test_more_is_never_faster(
    machine: Machine, model: SimulatedModel, instances: int, requests: int, context: int, more: int
) -> None:
    cost = IterationCost(Fleet(machine=machine, model=model, instances=4))
    masters = min(instances, requests)
    base = cost.batch(decode(requests, context, instances, masters)).total
    assert cost.batch(decode(requests, context + more, instances, masters)).total >= base
    assert cost.batch(decode(requests + 1, context, instances, masters)).total >= base * (1 - 1e-9)
    length = min(more, 20_000)
    chunk = cost.batch(prefill(length, context=context, instances=instances)).total
    assert cost.batch(prefill(length + 16, context=context, instances=instances)).total >= chunk
    assert cost.batch(prefill(length, context=context + more, instances=instances)).total >= chunk
    assert math.isfinite(chunk)


@given(MACHINES, FITTING, st.integers(50_000, 10**6))
@settings(max_examples=30)
def test_two_instances_are_faster_for_long_prompts(machine: Machine, model: SimulatedModel, length: int) -> None:
    """But not twice as fast."""
    cost = IterationCost(Fleet(machine=machine, model=model, instances=2))
    one, two = (cost.batch(prefill(length, instances=instances)).total for instances in (1, 2))
    assert one / 2 < two < 0.75 * one


@given(MACHINES, FITTING)
def test_short_prompts_gain_nothing_from_more_instances(machine: Machine, model: SimulatedModel) -> None:
    cost = IterationCost(Fleet(machine=machine, model=model, instances=2))
    one, two = (cost.batch(prefill(16, instances=instances)).total for instances in (1, 2))
    assert two > one


def test_another_node_is_further_away() -> None:
    near = IterationCost(Fleet(machine=A800_80G, model=MODELS["lwm-1m"], instances=8))
    two_to_a_node = replace(A800_80G, sheet=replace(A800_80G.sheet, devices_per_node=2))
    far = IterationCost(Fleet(machine=two_to_a_node, model=MODELS["lwm-1m"], instances=8))
    for batch in (prefill(2000, instances=8), decode(8, 10_000, instances=8)):
        assert far.batch(batch).device > near.batch(batch).device
    assert far.batch(prefill(2000, instances=2)) == near.batch(prefill(2000, instances=2))


def test_the_tiny_model_is_what_the_hand_computation_says() -> None:
    assert TINY.shape.layer_parameters == LAYERS * LAYER_PARAMETERS
    assert TINY.shape.head_parameters == HEAD_PARAMETERS
