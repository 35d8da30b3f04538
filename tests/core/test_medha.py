"""The policy `medha`, decision by decision: chunks, ranks, shared iterations, shards."""

from __future__ import annotations

import sys
from math import inf
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.config import SchedulerConfig
from longspan.core.actions import Action, KVRange, RunBatch
from longspan.core.analytic_cost_model import Hardware, ModelShape, analytic_cost_model
from longspan.core.cost_model import Chunk, FittedCostModel
from longspan.core.events import Event, RequestArrived
from longspan.core.ledger import Ledger
from longspan.core.load import Load, batch_seconds
from longspan.core.policies.medha.iteration import Iteration
from longspan.core.policies.medha.kvp import plan_shards
from longspan.core.policies.medha.predictor import Predictor, chunk_floor, longest, tokens_per_shard
from longspan.core.policies.medha.priority import (
    earliest_deadline,
    first_come,
    lars,
    least_slack,
    shortest_remaining,
)
from longspan.core.policies.medha.ranking import Backlog
from longspan.core.request import Request
from longspan.core.scheduler import Scheduler
from longspan.core.state import SchedulerState
from longspan.errors import ConfigError, RequestError
from longspan.metrics.event_log import EventLogWriter, read_event_log, replay
from longspan.service_level import ServiceLevel
from longspan.workload.playback import Work, play

from .cost_models import cost_models, scaling_model
from .driver import Driver

LLAMA_8B = ModelShape(
    num_layers=32, hidden_size=4096, intermediate_size=14336, num_heads=32, num_kv_heads=8, head_dim=128,
    vocab_size=128256, weight_bytes=2.0, kv_bytes=2.0,
)  # fmt: skip
H200 = Hardware(flops=989e12, bandwidth=4.8e12, link_bandwidth=4e11, overhead_s=0.0)
LAZY = ServiceLevel(ttft_s=1e6)


def model(**changes: float) -> FittedCostModel:
    """A token costs 1 ms, whatever its context; nothing is fixed."""
    return scaling_model(4, **({"fixed": 0.0, "fixed_step": 0.0, "per_token": 1e-3, "per_pair": 0.0,
                               "decode_fixed": 0.0, "decode_step": 0.0, "per_request": 1e-3} | changes))  # fmt: skip


def driver(cost_model: FittedCostModel | None = None, **changes: Any) -> Driver:
    """One instance of 1000 slots; iterations of 50 ms, and a bit for rounding: 50 tokens of the plain model."""
    given_: dict[str, Any] = {
        "num_instances": 1, "kv_tokens": 1000, "policy": "medha", "decode_headroom": 4, "lookahead": False,
        "tpot_slo_s": 0.0505,
    }  # fmt: skip
    return Driver(SchedulerConfig(**(given_ | changes)), cost_model=cost_model or model())


def batch(actions: list[Action]) -> RunBatch:
    (found,) = [action for action in actions if isinstance(action, RunBatch)]
    return found


def lengths(actions: list[Action]) -> dict[str, int]:
    return {segment.request_id: segment.length for segment in batch(actions).segments}


# chunks


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
        request = Request(f"d{number}", context, 9, 0.0, number)
        iteration.add_decode(request, 0, ((number % 2, context),))
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
    predictor = Predictor(cost, SchedulerConfig(num_instances=3, kv_tokens=500, kvp_tokens_per_shard=100))
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


# ranks


def test_a_short_prompt_overtakes_and_the_long_one_keeps_its_kv() -> None:
    d = driver()
    d.arrive(600, 2, "long", service=LAZY)
    d.complete()
    d.arrive(30, 2, "short")
    assert lengths(d.complete()) == {"short": 30, "long": 20}
    d.finish()
    assert d.scheduler.stats().num_preemptions == 0


def test_higher_priority_goes_first_whatever_the_slack() -> None:
    d = driver()
    d.arrive(200, 2, "running")
    d.arrive(60, 2, "urgent", service=ServiceLevel(ttft_s=0.001))
    d.arrive(60, 2, "important", service=ServiceLevel(ttft_s=1e6, priority=1))
    assert list(lengths(d.complete())) == ["important"]


def test_ranks_change_with_time() -> None:
    """Relative slack falls in proportion to the work: the short request, behind at first, comes to be ahead."""
    cost = model()
    config = SchedulerConfig(num_instances=1, kv_tokens=10_000, policy="medha")
    predictor = Predictor(cost, config)
    long, short = Request("long", 5000, 1, 0.0, 0), Request("short", 100, 1, 0.0, 1)
    first = [predictor.standing(request, 0.0).relative_slack for request in (long, short)]
    later = [predictor.standing(request, 1.0).relative_slack for request in (long, short)]
    assert first[0] == pytest.approx(0.5) and first[1] == pytest.approx(4.0)
    assert later[0] == pytest.approx(0.3) and later[1] == pytest.approx(-6.0)


@given(
    arrivals=st.lists(
        st.tuples(st.integers(1, 5000), st.sampled_from([None, 0.01, 5.0]), st.integers(0, 2), st.floats(0.0, 1.0)),
        min_size=1,
        max_size=12,
    ),
    rule=st.sampled_from([lars, first_come, earliest_deadline, shortest_remaining, least_slack]),
    leaving=st.data(),
)
def test_the_waiting_are_ranked_as_one_by_one(
    arrivals: list[tuple[int, float | None, int, float]], rule: Any, leaving: st.DataObject
) -> None:
    """All together in columns, however they came and left in between."""
    config = SchedulerConfig(num_instances=1, kv_tokens=10**6)
    state, predictor, backlog = SchedulerState(Ledger(config)), Predictor(model(), config), Backlog()
    now = 0.0
    for number, (tokens, ttft_s, priority, after_s) in enumerate(arrivals):
        now += after_s
        state.waiting.add(Request(str(number), tokens, 9, now, number, ServiceLevel(ttft_s, None, priority)))
        if leaving.draw(st.booleans()):
            state.waiting.remove(leaving.draw(st.sampled_from(list(state.waiting))))
        backlog.follow(state, lambda request: predictor.standing(request, 0.0))

        def key(request: Request, now: float = now) -> tuple[float, ...]:
            return (-request.service.priority, rule(predictor.standing(request, now)), request.arrival_index)

        assert [backlog.queue[place] for place in backlog.order(now, rule)] == sorted(state.waiting, key=key)
        assert backlog.least_need() == min([r.num_tokens + state.headroom(r) for r in state.waiting], default=inf)


def test_deadlines_are_in_proportion_to_the_work_above_the_floor() -> None:
    """Neither the factor nor the floor is ignored."""
    predictor = Predictor(model(), SchedulerConfig(num_instances=1, ttft_slo_factor=3.0, ttft_slo_floor_s=0.5))
    assert predictor.deadline(Request("r", 1000, 1, 0.0, 0)) == pytest.approx(3.0)
    assert predictor.deadline(Request("r", 10, 1, 0.0, 0)) == 0.5
    own = Request("r", 1000, 1, 0.0, 0, service=ServiceLevel(ttft_s=0.1))
    assert predictor.deadline(own) == 0.1


@pytest.mark.parametrize(
    ("policy", "met"),
    [
        ("medha", ["long"]),
        ("least_slack", ["long", "short 1", "short 2"]),
        ("edf", ["long", "short 1", "short 2"]),
        ("srpt", ["long", "short 1", "short 2"]),
        ("fcfs", ["long"]),
        ("sarathi", ["long"]),
    ],
)
def test_the_papers_three_requests(policy: str, met: list[str]) -> None:
    """Its own rule misses two deadlines there that others keep: it spends short requests' slack for the long one's."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    from three_requests import LINEAR, run

    row = run(policy, LINEAR)
    assert row["deadlines_met"] == met
    if policy == "medha":
        assert row["first_token_at_s"]["short 1"] == pytest.approx(6.2, abs=0.02)


# shared iterations


def sharing_driver(share: float) -> Driver:
    """Behind 100 tokens attention takes over; the long prompt has slack to spare."""
    d = driver(model(per_pair=5e-6), max_space_share=share, tpot_slo_s=0.1)
    d.arrive(700, 2, "long", service=ServiceLevel(ttft_s=20.0, priority=0))
    while d.lives["long"].outputs == 0 and d.scheduler._state.request("long").num_stored < 400:
        d.complete()
    return d


def test_a_long_prompt_with_slack_leaves_time_to_a_short_one_below_it() -> None:
    chunks = {}
    for share in (0.0, 0.4):
        d = sharing_driver(share)
        d.arrive(90, 2, "short", service=ServiceLevel(ttft_s=1e6))
        actions = d.complete()
        chunks[share] = lengths(actions)
        long_alone = batch_seconds(
            RunBatch(0, (0,), tuple(s for s in batch(actions).segments if s.request_id == "long")),
            model(per_pair=5e-6),
        )
        assert long_alone >= (1 - share) * 0.1 - 0.006  # a token of the long one takes some 5 ms
        assert batch_seconds(batch(actions), model(per_pair=5e-6)) <= 0.1
    assert chunks[0.0].get("short", 0) <= 5  # what no token of the long one fits in
    assert 25 <= chunks[0.4]["short"] <= 40


def test_what_short_ones_leave_goes_to_the_long_one() -> None:
    d = sharing_driver(0.4)
    alone = lengths(d.complete())["long"]
    d.arrive(3, 2, "short", service=ServiceLevel(ttft_s=1e6))
    shared = lengths(d.complete())
    assert shared["short"] == 3
    assert shared["long"] >= alone - 3


def test_one_long_prompt_in_a_batch() -> None:
    d = driver(model(per_pair=5e-6), tpot_slo_s=0.1, kv_tokens=4000)
    for name in ("a", "b"):
        d.arrive(700, 2, name, service=LAZY)
    d.finish()
    longs = [
        [segment for segment in action.segments if segment.length > 1 and segment.start >= 300]
        for _, _, actions in d.log
        for action in actions
        if isinstance(action, RunBatch)
    ]
    assert max(map(len, longs)) == 1


# shards


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
        for action in d.complete():
            if isinstance(action, RunBatch) and len(action.group) == 2:
                seen.add(frozenset(segment.request_id for segment in action.segments))
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


# service levels


def test_the_event_log_keeps_service_levels_and_replays(tmp_path: Path) -> None:
    cost = scaling_model(2)
    d = Driver(SchedulerConfig(num_instances=2, kv_tokens=400, policy="medha"), seed=3, cost_model=cost)
    for number in range(30):
        level = ServiceLevel(ttft_s=0.1 * number or None, tpot_s=0.02 if number % 3 else None, priority=number % 2)
        d.arrive(20 + 7 * number, 1 + number % 5, service=level)
        if number % 2:
            d.complete()
    d.finish()
    with EventLogWriter(tmp_path / "log", d.config, cost) as writer:
        for now, event, actions in d.log:
            writer.write(now, event, actions)
    assert [record.event for record in read_event_log(tmp_path / "log")] == [event for _, event, _ in d.log]
    assert replay(tmp_path / "log") is None


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_service_level_that_cannot_be_kept_is_refused(seconds: float) -> None:
    with pytest.raises(RequestError, match=r"ttft_s is .* above 0"):
        ServiceLevel(ttft_s=seconds)
    with pytest.raises(RequestError, match=r"tpot_s is .* above 0"):
        ServiceLevel(tpot_s=seconds)


@pytest.mark.parametrize(
    "setting",
    [{"ttft_slo_factor": 0.5}, {"ttft_slo_floor_s": 0.0}, {"tpot_slo_s": -1.0}, {"chunk_size": 0},
     {"max_fixed_share": 1.0}, {"max_space_share": 1.0}, {"kvp_tokens_per_shard": 0}],
)  # fmt: skip
def test_settings_out_of_range_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        SchedulerConfig(**setting)  # type: ignore[arg-type]


def test_sarathi_counts_tokens() -> None:
    d = driver(policy="sarathi", chunk_size=64)
    assert lengths(d.arrive(100, 3, "a")) == {"a": 64}
    d.arrive(100, 3, "b")
    assert lengths(d.complete()) == {"a": 36, "b": 28}
    assert lengths(d.complete()) == {"a": 1, "b": 63}


def test_play_gives_every_request_its_tokens() -> None:
    cost = scaling_model(2)
    scheduler = Scheduler(SchedulerConfig(num_instances=2, policy="medha"), cost_model=cost)
    arrivals = [(0.1 * n, RequestArrived(f"r{n}", 500 * (n + 1), n + 1)) for n in range(5)]

    def check(now: float, event: Event, actions: list[Action]) -> None:
        scheduler.check_invariants()

    def seconds(work: Work) -> float:
        return batch_seconds(work, cost) if isinstance(work, RunBatch) else cost.migration(work.num_tokens)

    played = play(scheduler, arrivals, seconds, check)
    assert [len(request.token_times) for request in played.values()] == [1, 2, 3, 4, 5]
    assert all(request.ended and request.token_times == sorted(request.token_times) for request in played.values())
