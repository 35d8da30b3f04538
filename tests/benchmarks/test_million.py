"""The benchmarks of a million tokens, with a few thousand."""

from __future__ import annotations

import pytest

from benchmarks.engine import million_exact, million_tokens
from benchmarks.engine.million_log import LongLife, Pause, read_life
from benchmarks.engine.million_model import LongModel
from longspan.core.actions import Action, KVRange, RunBatch, Segment, StopRequest
from longspan.core.events import BatchCompleted, Event, RequestArrived
from longspan.metrics.event_log import LogRecord

TOKENS = 3000
OPTIONS = ("--instances", "2", "--kv-tokens", "16384")


def test_the_server_takes_the_prompt_and_what_comes_beside_it() -> None:
    model = LongModel()
    done = million_tokens.measure(model, OPTIONS, TOKENS, 0.05, 3)
    assert done.life.computed == TOKENS and done.life.in_order and not done.life.times_dropped
    assert done.shorts and all(each.error is None for each in [*done.shorts, *done.priority])
    found = million_tokens.results(model, TOKENS, OPTIONS, done, (400.0, 420.0))
    assert found["share_of_peak"] == pytest.approx(
        (2 * 2 * 32 * TOKENS**2 + 2 * TOKENS * 128 * (6 * 32 + 3 * 256)) / found["ttft_s"] / 410e9
    )


def test_the_server_is_exact_where_attention_is_sharp() -> None:
    found = million_exact.measure(LongModel(), (*OPTIONS, "--dtype", "float32"), TOKENS, (1777, TOKENS))
    for position in found.positions:
        assert position["tokens"] == position["theirs"]
        assert position["largest_difference"] < 1e-4 < 0.01 < position["without_first_half"]


def test_pauses_and_what_is_computed_twice_are_told_apart() -> None:
    def run(batch: int, request: str, start: int, length: int) -> RunBatch:
        held = ((0, start),) if start else ()
        return RunBatch(batch, (0,), (Segment(request, start, length, (0,), (KVRange(0, start, length),), held),))

    def life(*records: tuple[float, Event, tuple[Action, ...]]) -> LongLife:
        return read_life([LogRecord(0, *record) for record in records], 100)

    arrive, begin = RequestArrived("long", 100, 1), run(0, "long", 0, 60)
    other = (RequestArrived("other", 7, 1), ())
    paused = life(
        (1.0, arrive, (begin,)), (2.0, *other), (3.0, BatchCompleted(0), (run(1, "other", 0, 7),)),
        (5.0, BatchCompleted(1), (run(2, "long", 60, 40),)), (6.0, BatchCompleted(2), ()),
    )  # fmt: skip
    assert (paused.computed, paused.in_order, paused.times_dropped) == (100, True, 0)
    assert paused.pauses == [Pause(at_s=2.0, seconds=2.0, batches=1, tokens=7, stored=60)]
    again = life(
        (1.0, arrive, (begin,)),
        (3.0, BatchCompleted(0), (StopRequest("long", (0,), "preempted"), run(1, "long", 0, 100))),
        (4.0, BatchCompleted(1), ()),
    )
    assert (again.computed, again.in_order, again.times_dropped, again.pauses) == (160, False, 1, [])
