"""The policy `medha`: KV in shards over instances."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.core.actions import KVRange, RunBatch
from longspan.core.costs.cost_model import Chunk
from longspan.core.costs.load import Load
from longspan.core.policies.chunked.memory.kvp import plan_shards

from .cost_models import scaling_model
from .medha import LAZY, driver
from .reading import batches


def test_kv_grows_over_instances_and_chunks_stop_at_the_shards_end() -> None:
    d = driver(num_instances=3, kvp_tokens_per_shard=120)
    d.arrive(300, 3, "a")
    segments = []
    while d.model.started and d.lives["a"].outputs == 0:
        running = d.model.started[0]
        assert isinstance(running, RunBatch)
        segments.append((running.group, running.segments[0].length, running.segments[0].context))
        d.complete()
    assert segments == [
        ((0,), 50, ()),
        ((0,), 50, ((0, 50),)),
        ((0,), 20, ((0, 100),)),
        ((0, 1), 50, ((0, 120),)),
        ((0, 1), 50, ((0, 120), (1, 50))),
        ((0, 1), 20, ((0, 120), (1, 100))),
        ((0, 1, 2), 50, ((0, 120), (1, 120))),
        ((0, 1, 2), 10, ((0, 120), (1, 120), (2, 50))),
    ]
    d.finish()


def test_all_slots_of_a_prompt_are_set_aside_with_its_first_chunk() -> None:
    d = driver(num_instances=2, kvp_tokens_per_shard=400)
    d.arrive(700, 3, "a")
    state = d.scheduler._state
    assert state.request("a").reserved == (KVRange(0, 50, 400), KVRange(1, 400, 700))
    assert [instance.unreserved for instance in state.cluster.instances] == [600, 700]
    d.abort("a")
    d.finish()
    assert [instance.reserved for instance in state.cluster.instances] == [0, 0]


def test_short_requests_go_on_at_every_shard_of_a_growing_one() -> None:
    """The group's batch has the chunk, and what is local to each of its instances."""
    d = driver(num_instances=2, kvp_tokens_per_shard=100)
    d.arrive(30, 40, "left")
    d.arrive(30, 40, "right")
    d.arrive(500, 3, "long", service=LAZY)
    seen = set()
    for _ in range(60):
        if not d.model.started:
            break
        for batch in batches(d.complete()):
            if len(batch.group) == 2:
                seen.add(frozenset(segment.request_id for segment in batch.segments))
    assert frozenset({"left", "right", "long"}) in seen
    d.finish()


@given(
    tokens=st.integers(1, 100),
    headroom=st.integers(0, 10),
    rooms=st.lists(st.integers(0, 60), min_size=1, max_size=5),
    shard=st.integers(1, 60),
)
def test_shards_cover_the_prompt_within_the_rooms(tokens: int, headroom: int, rooms: list[int], shard: int) -> None:
    room_of = dict(enumerate(rooms))
    planned = plan_shards(tokens, headroom, room_of, list(room_of), shard)
    assert (planned is None) == (sum(rooms) < tokens + headroom)
    if planned is None:
        return
    assert [0, *(piece.end for piece in planned)] == [*(piece.start for piece in planned), tokens]
    assert all(piece.length <= room_of[piece.instance] for piece in planned)
    assert len({piece.instance for piece in planned}) == len(planned)
    if sum(min(shard, room) for room in rooms) >= tokens + headroom:
        assert all(piece.length <= shard for piece in planned)


def test_an_iteration_over_shards_takes_as_long_as_the_busiest() -> None:
    cost = scaling_model(2)
    here, there, answering = Load(cost), Load(cost), Load(cost)
    here.add_chunk(100, 1000)
    there.add_answers(100, 50_000)
    answering.add_answered(1000)
    assert here.seconds() == cost.prefill((Chunk(100, 1000),), 1)
    assert there.seconds() == pytest.approx(2 * 100 * 50_000 * 7.8e-10)
    assert answering.seconds() == pytest.approx(1000 * 1e-8)
