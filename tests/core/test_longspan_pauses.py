"""A half-done prompt that is left out keeps its KV; for want of slots it moves, or gives way, if that costs less."""

from __future__ import annotations

from itertools import pairwise

from longspan.core.actions import MigrateKV, StopRequest
from longspan.service_level import ServiceLevel

from .longspan import Run, arrival, plain, played

LAZY, URGENT = ServiceLevel(ttft_s=60.0, if_late="serve"), ServiceLevel(priority=1, if_late="serve")


def computed(run: Run, name: str) -> int:
    return sum(s.length for _, batch, _ in run.took for s in batch.segments if s.request_id == name)


def preempted(run: Run) -> set[str]:
    return {
        action.request_id for _, _, actions in run.steps for action in actions
        if isinstance(action, StopRequest) and action.reason == "preempted"
    }  # fmt: skip


def test_who_is_left_out_goes_on_where_it_was() -> None:
    run = played(
        [arrival(0.0, "long", 3000, 1, LAZY), *[arrival(0.3, f"urgent{n}", 200, 1, URGENT) for n in range(5)]], plain()
    )
    assert max(run.played[f"urgent{n}"].token_times[0] for n in range(5)) < 2.0
    began = [begin for begin, batch, _ in run.took for s in batch.segments if s.request_id == "long"]
    assert max(b - a for a, b in pairwise(began)) > 0.9, "it paused"
    assert computed(run, "long") == 3000 and not preempted(run)


def test_it_gives_way_only_if_no_more_is_lost_than_served() -> None:
    """The pool holds one of them. After 0.35 s some 300 tokens are done."""
    for tokens, gives_way in ((200, False), (900, True)):
        run = played(
            [arrival(0.0, "long", 900, 1, LAZY), arrival(0.35, "urgent", tokens, 1, URGENT)],
            plain(), kv_tokens=1000, decode_headroom=0, max_batch_tokens=100,
        )  # fmt: skip
        assert preempted(run) == ({"long"} if gives_way else set())
        assert (computed(run, "long") > 900) == gives_way
        assert run.played["long"].ended and run.played["urgent"].ended
        assert (run.played["urgent"].token_times[0] < run.played["long"].token_times[0]) == gives_way


def test_it_moves_where_that_makes_room_in_one_piece() -> None:
    """600 and 300 tokens decode on an instance each; the half-done 350 beside the 300 leave 350: 500 fit nowhere."""
    run = played(
        [
            arrival(0.0, "small", 300, 150, LAZY), arrival(0.005, "large", 600, 150, LAZY),
            arrival(1.007, "long", 350, 1, LAZY), arrival(1.227, "urgent", 500, 1, URGENT),
        ],
        plain(2), num_instances=2, policy="longspan:team=1", kv_tokens=1050, decode_headroom=0, max_batch_tokens=100,
    )  # fmt: skip
    moved = [action for _, _, actions in run.steps for action in actions if isinstance(action, MigrateKV)]
    assert [action.request_id for action in moved] == ["long"]
    assert not preempted(run) and computed(run, "long") == 350
    urgent = {s.store[0].instance for _, b, _ in run.took for s in b.segments if s.request_id == "urgent"}
    assert urgent == {moved[0].source}
    assert run.played["urgent"].token_times[0] < run.played["large"].token_times[-1]
