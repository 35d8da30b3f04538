"""The elastic operator against plain attention, for any choice of who computes, stores and holds context."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from longspan.attention.backend import AttentionBackend
from longspan.attention.cpu import CpuBackend
from longspan.attention.elastic import ElasticAttention
from longspan.attention.layout import BatchLayout, plan_layout, positions_of
from longspan.attention.native import NativeCpuBackend
from longspan.attention.reference import ReferenceBackend
from longspan.core.actions import KVRange, RunBatch, Segment
from longspan.distributed.local import LocalTransport, LocalWorld
from longspan.distributed.transport import Transport
from longspan.native.build import BuildError
from longspan.native.isa import available_isas
from longspan.worker.kv_pool import KVPool
from tests.threads import in_threads

HEADS, KV_HEADS, HEAD_DIM, LAYERS = 6, 2, 32, 2
UNSEEN = 3  # tokens in a residence behind those that a segment refers to, on each instance
CPU = torch.device("cpu")


@dataclass
class Truth:
    """Q, K and V of whole requests in each layer: {request: [L, tokens, heads, K]}."""

    q: dict[str, torch.Tensor]
    k: dict[str, torch.Tensor]
    v: dict[str, torch.Tensor]

    def expected(self, layer: int, segment: Segment) -> torch.Tensor:
        r = segment.request_id
        whole = ReferenceBackend().block(
            self.q[r][layer, : segment.end], self.k[r][layer, : segment.end], self.v[r][layer, : segment.end],
            causal=True, scale=HEAD_DIM**-0.5,
        )  # fmt: skip
        return whole.out_THK[segment.start :]


def make_truth(batch: RunBatch, seed: int) -> Truth:
    generator = torch.Generator().manual_seed(seed)

    def draw(heads: int) -> dict[str, torch.Tensor]:
        return {
            s.request_id: torch.randn(LAYERS, s.end, heads, HEAD_DIM, generator=generator)
            for s in batch.segments
        }

    return Truth(draw(HEADS), draw(KV_HEADS), draw(KV_HEADS))


@dataclass(frozen=True)
class Place:
    """Where and in what a batch runs. on: what each thread enters. tolerance: of outputs.

    transport: of each instance; None: `LocalTransport`. give_up: wakes those that wait in it. near: pairs of instances,
    in order, that lend each other context.
    """

    device: torch.device = CPU
    dtype: torch.dtype = torch.float32
    on: Callable[[], AbstractContextManager[object]] = nullcontext
    tolerance: float = 2e-5
    transport: Callable[[int], Transport] | None = None
    give_up: Callable[[], None] = lambda: None
    near: Collection[tuple[int, int]] = ()

    def lay_out(self, batch: RunBatch, instance: int, pool: KVPool) -> BatchLayout:
        """Return the instance's part of the batch."""
        return plan_layout(
            batch, instance, pool, self.device, lambda peer: (min(peer, instance), max(peer, instance)) in self.near
        )


def run_everywhere(
    batch: RunBatch, truth: Truth, num_instances: int, backend: AttentionBackend, place: Place = Place()
) -> list[KVPool]:
    """Run the batch on one thread for each instance, check every row's output, and return the pools."""
    world = LocalWorld(num_instances, tp_size=1)
    transport_of = place.transport or partial(LocalTransport, world)

    def give_up() -> None:
        world.give_up()
        place.give_up()

    slots = sum(segment.end for segment in batch.segments)  # one instance may hold and keep all of it
    slots += sum(UNSEEN * len(segment.context) * (1 + len(segment.earlier)) for segment in batch.segments)
    with place.on():
        pools = make_pools(batch, truth, num_instances, slots, place)

    def instance_thread(instance: int) -> None:
        with place.on():
            run_instance(instance)

    def run_instance(instance: int) -> None:
        layout = place.lay_out(batch, instance, pools[instance])
        attention = ElasticAttention(
            layout, pools[instance], backend, transport_of(instance), lambda i: i, HEAD_DIM**-0.5
        )
        positions = positions_of(layout)
        for layer in range(LAYERS):
            def mine(side: dict[str, torch.Tensor], heads: int, layer: int = layer) -> torch.Tensor:
                rows = [
                    side[p.segment.request_id][layer, positions[p.start : p.stop]] for p in layout.rows
                ]
                return (torch.cat(rows) if rows else torch.zeros(0, heads, HEAD_DIM)).to(place.device, place.dtype)

            out = attention(layer, mine(truth.q, HEADS), mine(truth.k, KV_HEADS), mine(truth.v, KV_HEADS))
            for part in layout.rows:
                expected = truth.expected(layer, part.segment)
                at = positions[part.start : part.stop] - part.segment.start
                torch.testing.assert_close(
                    out[part.start : part.stop].float().cpu(), expected[at], atol=place.tolerance, rtol=1e-4
                )

    in_threads(instance_thread, batch.group, give_up)
    return pools


def make_pools(batch: RunBatch, truth: Truth, num_instances: int, slots: int, place: Place) -> list[KVPool]:
    """With the context of the batch's segments in them, each part in its residence; and behind what a segment refers
    to, tokens that it must not see."""
    pools = [KVPool(LAYERS, KV_HEADS, slots, HEAD_DIM, place.dtype, place.device) for _ in range(num_instances)]
    for segment in batch.segments:
        start = 0
        for instance, tokens in segment.context:
            end = start + tokens
            for residence, low, high in within(segment, start, end):
                kv = torch.stack([side[segment.request_id][:, low:high] for side in (truth.k, truth.v)])
                kv = kv.transpose(2, 3).to(place.device, place.dtype)
                pools[instance].insert(residence, [(low, high)], kv)
            start = end
            others = torch.full((2, LAYERS, KV_HEADS, UNSEEN, HEAD_DIM), 9.0, dtype=place.dtype, device=place.device)
            for residence, _, behind in residences(segment):
                pools[instance].insert(residence, [(behind, behind + UNSEEN)], others)
    return pools


def residences(segment: Segment) -> list[tuple[int, int, int]]:
    """(residence, begin, end) of what the segment refers to, its own tokens included."""
    ends = [end for _, end in segment.earlier]
    numbers = [number for number, _ in segment.earlier]
    return list(zip([*numbers, segment.residence], [0, *ends], [*ends, segment.end], strict=True))


def within(segment: Segment, start: int, end: int) -> list[tuple[int, int, int]]:
    """(residence, start, end) of each part of these tokens."""
    parts = [(number, max(start, begin), min(end, stop)) for number, begin, stop in residences(segment)]
    return [part for part in parts if part[1] < part[2]]


def check_kept(batch: RunBatch, truth: Truth, pools: list[KVPool]) -> None:
    """Every new token's KV is exactly where the plan put it, once."""
    for segment in batch.segments:
        for held in segment.store:
            if held.length:
                kept = pools[held.instance].read(segment.residence, [(held.start, held.end)])
                for side, true in zip(kept, (truth.k, truth.v), strict=True):
                    torch.testing.assert_close(
                        side.transpose(1, 2), true[segment.request_id][:, held.start : held.end], atol=0, rtol=0
                    )
        at_rest = sum(len(pool.held(number, end)) for number, _, end in residences(segment) for pool in pools)
        assert at_rest == segment.end


EVERY_PAIR = frozenset(combinations(range(4), 2))


@st.composite
def batches(draw: st.DrawFn) -> tuple[RunBatch, int]:
    """Any batch that the operator allows, on up to four instances."""
    num_instances = draw(st.integers(1, 4))
    everyone = list(range(num_instances))
    ring = draw(st.lists(st.sampled_from(everyone), unique=True, min_size=1))
    segments = []
    for number in range(draw(st.integers(1, 5))):
        striped = len(ring) > 1 and draw(st.booleans())
        length = draw(st.one_of(st.just(1), st.integers(1, 40)))
        start = draw(st.one_of(st.just(0), st.integers(0, 50)))
        context = split(draw, start, everyone)
        pieces: list[int] = []
        if striped and length > 1 and len(ring) > 1 and draw(st.booleans()):  # in pieces: in any order, several of one
            pieces = sorted(draw(st.sets(st.integers(start + 1, start + length - 1), min_size=1, max_size=5)))
            compute = tuple(draw(st.sampled_from(ring)) for _ in range(len(pieces) + 1))
            if set(compute) != set(ring):
                pieces = []
        if pieces:
            shares = split(draw, length, ring)
        elif striped:
            turn = draw(st.integers(0, len(ring) - 1))
            compute = tuple(ring[turn:] + ring[:turn])
            shares = split(draw, length, ring)
        else:
            compute = (draw(st.sampled_from(everyone)),)
            shares = [(compute[0], length)]
        store, at = [], start
        for instance, tokens in shares:
            store.append(KVRange(instance, at, at + tokens))
            at += tokens
        cuts = sorted(draw(st.sets(st.integers(1, start - 1), max_size=2))) if start > 1 else []
        earlier = tuple((100 * number + place, end) for place, end in enumerate(cuts))
        own = 100 * number + len(cuts)
        named = Segment(f"r{number}", start, length, compute, tuple(store), tuple(context), residence=own)
        segments.append(replace(named, earlier=earlier, cuts=tuple(pieces)))
    return RunBatch(0, tuple(everyone), tuple(segments)), num_instances


def split(draw: st.DrawFn, total: int, instances: list[int]) -> list[tuple[int, int]]:
    """Shares of `total` over some of the instances, in any order; empty ones are left out."""
    order = draw(st.permutations(instances))
    cuts = sorted(draw(st.lists(st.integers(0, total), min_size=len(order) - 1, max_size=len(order) - 1)))
    edges = [0, *cuts, total]
    return [(i, b - a) for i, a, b in zip(order, edges[:-1], edges[1:], strict=True) if b > a]


@pytest.fixture(scope="module", params=["reference", "torch", *available_isas()], ids=str)
def backend(request: pytest.FixtureRequest) -> AttentionBackend:
    if isinstance(request.param, str):
        return {"reference": ReferenceBackend(), "torch": CpuBackend()}[request.param]
    try:
        return NativeCpuBackend.for_isa(request.param)
    except BuildError as error:
        pytest.skip(str(error))


@pytest.fixture
def few_rows_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every segment lends, however short."""
    monkeypatch.setattr("longspan.core.loans.MANY_ROWS", 1)


SAME_FOR_ALL = [HealthCheck.function_scoped_fixture]


@settings(max_examples=100, suppress_health_check=SAME_FOR_ALL)
@given(case=batches(), seed=st.integers(0, 2**31), near=st.sets(st.sampled_from(sorted(EVERY_PAIR))))
@pytest.mark.usefixtures("few_rows_are_many")
def test_any_plan_is_exact(
    backend: AttentionBackend, case: tuple[RunBatch, int], seed: int, near: set[tuple[int, int]]
) -> None:
    batch, num_instances = case
    truth = make_truth(batch, seed)
    pools = run_everywhere(batch, truth, num_instances, backend, Place(near=near))
    check_kept(batch, truth, pools)


def pairs(layout: BatchLayout) -> int:
    """How often a query meets a token of some context on the instance."""
    attended = [layout.local, *(a.segments for a in layout.answers), *(b.segments for b in layout.borrows)]
    return sum((one.stop - one.start) * len(one.slots) for segments in attended for one in segments)


@settings(max_examples=100, suppress_health_check=SAME_FOR_ALL)
@given(case=batches(), near=st.sets(st.sampled_from(sorted(EVERY_PAIR))))
@pytest.mark.usefixtures("few_rows_are_many")
def test_both_ends_of_a_loan_agree(case: tuple[RunBatch, int], near: set[tuple[int, int]]) -> None:
    """And of what is asked for; every query meets its whole context, however that is lent."""
    batch, num_instances = case
    slots = sum(2 * one.end + UNSEEN * len(one.context) * (1 + len(one.earlier)) for one in batch.segments)
    met = set()
    for place in (Place(near=near), Place()):
        pools = make_pools(batch, make_truth(batch, 0), num_instances, slots, place)
        layouts = [place.lay_out(batch, instance, pools[instance]) for instance in batch.group]
        lent = {(i, x.peer): len(x.slots) for i, layout in enumerate(layouts) for x in layout.lends}
        assert lent == {(x.peer, i): x.num_tokens for i, layout in enumerate(layouts) for x in layout.borrows}
        assert all((min(pair), max(pair)) in place.near for pair in lent)
        asked = {(i, x.peer): x.num_rows for i, layout in enumerate(layouts) for x in layout.asks}
        assert asked == {(x.peer, i): x.num_rows for i, layout in enumerate(layouts) for x in layout.answers}
        met.add(sum(map(pairs, layouts)))
    assert len(met) == 1


@pytest.mark.parametrize(
    ("context", "wanted"),
    [
        pytest.param({0: 90}, {0: 360, 1: 360, 2: 360}, id="all on one"),
        pytest.param({0: 80, 1: 10}, {0: 400, 1: 360, 2: 320}, id="most on one"),
        pytest.param({3: 120}, {0: 360, 1: 360, 2: 360, 3: 360}, id="all on one that does not compute"),
        pytest.param({0: 35, 1: 35, 2: 20}, {0: 420, 1: 420, 2: 240}, id="nearly even"),
    ],
)
def test_context_that_lies_on_one_instance_is_shared(
    context: dict[int, int], wanted: dict[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt's chunk of 12 tokens on three instances, beside a decode: each attends to its share, and exactly."""
    monkeypatch.setattr("longspan.core.loans.MANY_ROWS", 4)
    start, length = sum(context.values()), 12
    chunk = Segment(
        "chunk", start, length, (0, 1, 2), (KVRange(1, start, start + length),), tuple(context.items()), residence=0
    )
    decode = Segment("decode", 20, 1, (2,), (KVRange(2, 20, 21),), ((0, 15), (2, 5)), residence=1)
    batch, place = RunBatch(0, (0, 1, 2, 3), (chunk, decode)), Place(near=EVERY_PAIR)
    truth = make_truth(batch, 0)
    check_kept(batch, truth, run_everywhere(batch, truth, 4, ReferenceBackend(), place))
    alone = RunBatch(0, (0, 1, 2, 3), (chunk,))
    pools = make_pools(alone, truth, 4, 200, place)
    found = {instance: pairs(place.lay_out(alone, instance, pools[instance])) for instance in alone.group}
    assert {instance: count for instance, count in found.items() if count} == wanted


@pytest.mark.parametrize("keepers", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
def test_retention_onto_every_subset_of_three(keepers: tuple[int, ...]) -> None:
    length = 100
    edges = [length * i // len(keepers) for i in range(len(keepers) + 1)]
    store = tuple(KVRange(k, a, b) for k, a, b in zip(keepers, edges[:-1], edges[1:], strict=True))
    batch = RunBatch(0, (0, 1, 2), (Segment("r", 0, length, (0, 1, 2), store),))
    truth = make_truth(batch, 0)
    check_kept(batch, truth, run_everywhere(batch, truth, 3, CpuBackend()))


def test_a_holder_whose_plan_is_wrong_is_found_out() -> None:
    batch = RunBatch(0, (0,), (Segment("r", 5, 1, (0,), (KVRange(0, 5, 6),), ((0, 5),)),))
    with pytest.raises(AssertionError, match="holds 0 tokens of r, the plan says 5"):
        plan_layout(batch, 0, KVPool(1, 1, 8, 8, torch.float32, CPU), CPU)
