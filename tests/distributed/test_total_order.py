"""One scheduler's total order keeps a transport as strict as NCCL's free of deadlock; agreement of pairs would not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.attention.reference import ReferenceBackend
from longspan.core.actions import RunBatch
from tests.attention.test_elastic import Place, batches, make_truth, run_everywhere
from tests.distributed.strict import StrictExchange, StrictTransport, StrictWorld
from tests.distributed.test_transports import DEADLOCK_S
from tests.threads import in_threads

A, B, C = range(3)


@settings(max_examples=40)
@given(case=batches(), seed=st.integers(0, 2**31))
def test_every_plan_runs(case: tuple[RunBatch, int], seed: int) -> None:
    """Rings, queries and partial results of any batch the operator allows."""
    batch, num_instances = case
    world = StrictWorld(num_instances)
    place = Place(transport=lambda instance: StrictTransport(world, instance), give_up=world.give_up)
    run_everywhere(batch, make_truth(batch, seed), num_instances, ReferenceBackend(), place)


@settings(max_examples=100)
@given(groups=st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=4, unique=True), min_size=1, max_size=12))
def test_every_schedule_runs(groups: list[list[int]]) -> None:
    """Batches over groups that overlap in any way: each rank takes its own in one order, at its own pace."""
    world = StrictWorld(4)

    def work(rank: int) -> None:
        transport = StrictTransport(world, rank)
        for number, group in enumerate(groups):
            if rank in group:
                at = group.index(rank)
                coming = torch.empty(1)
                exchange = transport.exchange(
                    [(torch.tensor([10.0 * number + rank]), group[(at + 1) % len(group)])], [(coming, group[at - 1])]
                )
                exchange.wait()
                assert coming.item() == 10 * number + group[at - 1]

    in_threads(work, range(4), world.give_up, deadlock_s=DEADLOCK_S)


@pytest.mark.parametrize(
    ("orders", "runs"),
    [
        ({A: [(A, B), (C, A)], B: [(A, B), (B, C)], C: [(B, C), (C, A)]}, True),
        ({A: [(A, B), (C, A)], B: [(B, C), (A, B)], C: [(C, A), (B, C)]}, False),
    ],
    ids=["one order", "a cycle"],
)
def test_an_order_of_pairs_is_not_enough(orders: dict[int, list[tuple[int, int]]], runs: bool) -> None:
    """Of three batches every two ranks share only one, and so cannot disagree on an order."""
    world = StrictWorld(3)
    exchanges = []
    for rank, pairs in orders.items():
        for pair in pairs:
            other = pair[0] if pair[1] == rank else pair[1]
            transport = StrictTransport(world, rank)
            exchanges.append(transport.exchange([(torch.ones(1), other)], [(torch.empty(1), other)]))
    assert {exchange.group.done for exchange in exchanges if isinstance(exchange, StrictExchange)} == {runs}
