"""LoongServe's steps, one by one: pure functions on plain data."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from longspan.core.books.request import Request
from longspan.core.costs.cost_model import CostModel
from longspan.core.policies.loongserve.allocation import allocate, could_pay, emptyings
from longspan.core.policies.loongserve.dispatching import dispatch
from longspan.core.policies.loongserve.joining import Queue
from longspan.core.policies.loongserve.prefill_times import PrefillTimes
from longspan.core.policies.loongserve.scaling import (
    best_masters,
    compute_bound_requests,
    fewest_instances,
    keep_everywhere,
    keep_on_fewest,
    num_masters_wanted,
    share_among_masters,
)
from longspan.core.policies.loongserve.survey import DecodeBatch, Prompt, Survey
from longspan.core.policies.parts.connected import connect
from longspan.core.policies.parts.predictions import OutputLengths, longest_prefix, peak_kv

from .cost_models import cost_models, scaling_model

LWM = PrefillTimes(scaling_model(8), 8)
KV_TOKENS = 210_000


def prompts(*lengths: int) -> list[Prompt]:
    return [Prompt(f"p{place}", length, length + 100) for place, length in enumerate(lengths)]


def decoding(
    rooms: dict[int, int], *, requests: int = 4, done: int = 100, seconds: float = 0.02, running: bool = False
) -> DecodeBatch:
    """A batch of requests that are expected to generate 500 tokens and have `done`."""
    members = tuple(
        Request(f"d{place}", 1000, 10_000, 0.0, place, num_output_tokens=done) for place in range(requests)
    )
    used = {number: KV_TOKENS - room for number, room in rooms.items()}
    return DecodeBatch(members, rooms, used, seconds, running, OutputLengths(500.0))


def go(queue: list[Prompt], free: dict[int, int], *batches: DecodeBatch, most: int = 10**9):  # type: ignore[no-untyped-def]
    return dispatch(Queue.of(queue, LWM, most), Survey(free, lambda: batches), KV_TOKENS)


# predictions


def test_prefill_times_are_the_cost_models() -> None:
    model = scaling_model(4)
    for n in (1, 2, 4):
        expected = model.prefill([(700, 0), (30_000, 0)], n)  # type: ignore[list-item]
        assert abs(PrefillTimes(model, 4).batch([700, 30_000], n) - expected) < 1e-12


def test_output_lengths_are_expected_as_average_then_a_little_more() -> None:
    lengths = OutputLengths(100.0)
    request = Request("r", 10, 500, 0.0, 0)
    for done, left in ((0, 100), (60, 40), (95, 10), (100, 10), (200, 20), (495, 5)):
        request.num_output_tokens = done
        assert lengths.left(request) == left


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), max_size=8))
def test_peak_kv_is_what_a_day_of_decoding_shows(requests: list[tuple[int, int]]) -> None:
    days = range(max((to_come for _, to_come in requests), default=0) + 1)
    shown = max(sum(now + day for now, to_come in requests if to_come >= day) for day in days)
    assert peak_kv(requests) == shown


@given(st.integers(0, 40), st.integers(0, 40))
def test_longest_prefix(count: int, fits: int) -> None:
    assert longest_prefix(range(count), lambda many: many <= fits) == min(count, fits)


# dispatching


def test_short_prompts_join_up_to_the_tipping_point() -> None:
    """Fixed cost 37 ms on one instance, 0.04 ms a token: a batch is memory-bound up to some 900 tokens."""
    chosen = go(prompts(*[100] * 50), {0: KV_TOKENS})
    tokens = 100 * len(chosen.prompts)
    assert 800 <= tokens <= 1000
    tipping = scaling_model(1).prefill_coefficients[0]
    assert abs(tokens - tipping.fixed / tipping.per_token) <= 100


def test_the_order_is_kept_also_when_somebody_later_would_fit() -> None:
    assert [prompt.tokens for prompt in go(prompts(300, 250_000, 10), {0: KV_TOKENS}).prompts] == [300]


def test_a_short_prompt_goes_beside_a_long_one_but_no_other_long_one() -> None:
    free = dict.fromkeys(range(4), KV_TOKENS)
    assert [prompt.tokens for prompt in go(prompts(150_000, 500), free).prompts] == [150_000, 500]
    assert [prompt.tokens for prompt in go(prompts(150_000, 150_000), free).prompts] == [150_000]


def test_batch_limits_hold_for_all_but_the_longest() -> None:
    assert len(go(prompts(100, 100, 100, 100), {0: KV_TOKENS}, most=250).prompts) == 2
    assert len(go(prompts(90_000, 100), {0: KV_TOKENS}, most=250).prompts) == 1
    two = dict.fromkeys(range(2), KV_TOKENS)
    assert len(go(prompts(90_000, 250, 200, 100), two, most=250).prompts) == 3


def test_a_decode_batch_pauses_for_short_prompts_and_not_for_long_ones() -> None:
    """Equations 1 and 2: eight seconds of decoding still to come, against 45 ms or 24 seconds of prefill."""
    batch = decoding({0: 100_000})
    short = go(prompts(500), {}, batch)
    assert short.paused == (batch,) and short.rooms == {0: 100_000}
    (decision,) = short.decisions
    assert decision.step == "pause" and decision.predicted["gain"] > decision.predicted["cost"]
    prefill_s = LWM.batch([500], 1)
    assert abs(decision.predicted["gain"] - 400 * 0.02 / 500) < 1e-12
    assert abs(decision.predicted["cost"] - 4 * prefill_s / 500) < 1e-12
    assert go(prompts(99_000), {}, batch).prompts == ()


def test_nobody_pauses_when_the_idle_have_room() -> None:
    assert go(prompts(500), {1: KV_TOKENS}, decoding({0: 100_000})).paused == ()


def test_a_batch_about_to_end_is_left_alone() -> None:
    nearly_done = decoding({0: 100_000}, requests=200, done=499, seconds=0.005)
    assert go(prompts(3000), {}, nearly_done).prompts == ()


def test_without_any_room_it_asks_for_instances_to_be_emptied() -> None:
    busy = [decoding({0: 150_000}), decoding({1: 190_000})]
    chosen = go(prompts(120_000), {}, *busy)
    assert chosen.lacking == (1,)  # fewest slots used
    assert chosen.rooms == {} and len(chosen.prompts) == 1
    assert go(prompts(120_000), {}, busy[0]).prompts == ()  # its KV has nowhere to go


@given(
    st.lists(st.integers(1, 200_000), min_size=1, max_size=6),
    st.sampled_from([1, 2, 8, 9, 49, 80]),  # many instances are looked at in arrays
    st.integers(1, 900_000),
)
def test_who_joins_is_who_would_rather_not_wait(lengths: list[int], E: int, room: int) -> None:
    times = PrefillTimes(scaling_model(80), 80)

    def pays(others: list[int], tokens: int) -> bool:
        n, now = len(others), times.batch(others, E)
        together = times.batch([*others, tokens], E)
        beside = [times.batch(others, E - c) * n - n * now + times.batch([tokens], c) for c in range(1, E)]
        return min([n * (together - now) + together, *beside]) <= now + times.batch([tokens], E) + 1e-12

    count = 0
    while count < len(lengths) and sum(lengths[: count + 1]) + 100 * (count + 1) <= room:
        if count and not pays(lengths[:count], lengths[count]):
            break
        count += 1
    found, seconds = Queue.of(prompts(*lengths), times, 10**9).join(E, room)
    assert found == count
    assert abs(seconds - times.batch(lengths[:count], E)) < 1e-9
    assert Queue.of(prompts(*lengths), times, 10**9).first(2).join(E, room)[0] == min(2, count)


# allocation


def test_instances_are_emptied_while_it_pays() -> None:
    batches = [decoding({n: KV_TOKENS - 10_000 * (n + 1)}) for n in range(1, 4)]
    long = allocate(prompts(150_000), 1, 0, batches, LWM, scaling_model(8).migration)
    assert long is not None and long.emptied == (1, 2)  # 3 is left to decode
    assert long.targets == (3,)
    gain = (LWM.batch([150_000], 1) - LWM.batch([150_000], 2)) / 150_000
    assert abs(long.decisions[0].predicted["gain"] - gain) < 1e-12
    assert abs(long.decisions[0].predicted["cost"] - scaling_model(8).migration(20_000) / 150_000) < 1e-12
    short = allocate(prompts(200), 1, 0, batches, LWM, scaling_model(8).migration)
    assert short is not None and short.emptied == ()


@given(st.integers(1, 200_000), st.integers(1, 7), st.integers(1, KV_TOKENS), st.sampled_from([1e-9, 1e-6, 1e-4]))
def test_where_no_instance_could_pay_none_is_emptied(tokens: int, allocated: int, room: int, per_token: float) -> None:
    migration_s = scaling_model(8, migration_per_token=per_token).migration
    batches = [decoding({6: room}), decoding({7: KV_TOKENS}, requests=0)]
    found = allocate(prompts(tokens), allocated, 0, batches, LWM, migration_s)
    assert found is not None
    assert could_pay(prompts(tokens), allocated, LWM, migration_s) or not found.emptied
    assert not could_pay(prompts(tokens), 8, LWM, migration_s)  # there are no more


def test_a_lacking_instance_is_emptied_if_waiting_would_take_longer() -> None:
    batches = [decoding({0: 150_000}), decoding({1: 150_000})]
    assert allocate(prompts(500), 0, 1, batches, LWM, lambda _: 5.0) is not None  # a batch goes on for 8 s
    assert allocate(prompts(500), 0, 1, batches, LWM, lambda _: 9.0) is None
    running = [decoding({0: 150_000}, running=True, seconds=4.0), decoding({1: 150_000})]
    assert allocate(prompts(500), 0, 1, running, LWM, lambda _: 5.0) is None  # 4 s more until both are at rest


@given(st.dictionaries(st.integers(0, 9), st.integers(1, 100), max_size=8))
def test_emptying_never_asks_for_more_room_than_there_is(used: dict[int, int]) -> None:
    rooms = {number: 100 - slots for number, slots in used.items()}
    batches = [
        DecodeBatch((), {number: room}, {number: used[number]}, 0.0, False, OutputLengths(1.0))
        for number, room in rooms.items()
    ]
    steps = list(emptyings(batches))
    emptied = {step.instance for step in steps}
    targets = {number for step in steps for number in step.targets}
    assert not emptied & targets and len(emptied) < max(1, len(used))
    assert sum(step.tokens for step in steps) <= sum(rooms[number] for number in targets)
    assert [step.tokens for step in steps] == sorted(step.tokens for step in steps)


# scaling


def test_down_to_the_fewest_instances_that_hold_kv_and_headroom() -> None:
    assert fewest_instances(150, {0: 100, 1: 100, 2: 60}) == [0, 1]
    assert fewest_instances(90, {0: 80, 1: 100, 2: 60}) == [1]
    kept = keep_on_fewest([Prompt("long", 150, 160), Prompt("short", 20, 30)], {0: 100, 1: 40, 2: 100})
    assert kept == {"long": [(0, 80), (2, 70)], "short": [(0, 15), (2, 5)]}


@given(st.data())
def test_retention_plans_keep_every_token_once_within_the_room(data: st.DataObject) -> None:
    rooms = data.draw(st.dictionaries(st.integers(0, 6), st.integers(0, 60), min_size=1, max_size=5))
    left, waiting = sum(rooms.values()), []
    while len(waiting) < 6 and left > 0:
        tokens = data.draw(st.integers(1, left))
        need = data.draw(st.integers(tokens, left))
        waiting.append(Prompt(f"p{len(waiting)}", tokens, need))
        left -= need
    for plan in (keep_on_fewest(waiting, rooms), keep_everywhere(waiting, rooms)):
        for prompt in waiting:
            assert sum(tokens for _, tokens in plan[prompt.id]) == prompt.tokens
        for number, room in rooms.items():
            assert sum(tokens for kept in plan.values() for n, tokens in kept if n == number) <= room
    fewest = {n for kept in keep_on_fewest(waiting, rooms).values() for n, _ in kept}
    need = sum(prompt.need for prompt in waiting)
    roomiest = sorted(rooms.values(), reverse=True)
    assert all(sum(roomiest[:count]) < need for count in range(len(fewest)) if len(fewest) > 1)


def test_the_threshold_of_masters_comes_from_the_cost_model() -> None:
    model = scaling_model(2)  # 13 ms for an iteration, and 0.1 ms a request
    assert compute_bound_requests(model, 16) == 130
    assert compute_bound_requests(scaling_model(2, per_request=0.0), 16) == 16
    assert [num_masters_wanted(requests, 130) for requests in (1, 130, 131, 400)] == [1, 1, 2, 4]


def test_masters_are_the_fewest_that_are_about_as_fast_as_any() -> None:
    assert best_masters(lambda masters: 1.0 / masters, 1, 8) == 8
    assert best_masters(lambda masters: 1.0 + 0.04 / masters, 1, 8) == 1  # the new KV stays together
    assert best_masters(lambda masters: [9.0, 3.0, 1.0, 2.0][masters - 1], 2, 4) == 4
    assert best_masters(lambda masters: 1.0, 3, 3) == 3


def test_masters_share_new_kv_evenly() -> None:
    free = {0: 100, 1: 100, 2: 3}
    assert share_among_masters(10, free, {0: 50, 2: 70}, 1) == {2: 3, 0: 7}  # 2 has most KV, but few slots
    assert share_among_masters(10, free, {0: 50}, 1) == {0: 10}
    assert sorted(share_among_masters(11, free, {0: 50, 1: 9}, 2).values()) == [5, 6]


@given(cost_models(), st.integers(1, 300))
def test_no_master_has_more_than_keeps_it_memory_bound(model: CostModel, requests: int) -> None:
    per_master = compute_bound_requests(model, 16)
    masters = num_masters_wanted(requests, per_master)
    shares = share_among_masters(requests, dict.fromkeys(range(masters), 1000), {}, masters)
    assert sum(shares.values()) == requests and max(shares.values()) <= per_master


# groups


@given(st.lists(st.sets(st.integers(0, 9), min_size=1, max_size=4), max_size=8))
def test_connected_parts_by_their_lowest(sets: list[set[int]]) -> None:
    reached = {number: {number} for number in range(10)}
    for _ in range(10):
        for number, part in reached.items():
            reached[number] = part.union(*(held for held in sets if held & part))
    leader = connect([tuple(sorted(held)) for held in sets])
    assert [leader[number] for number in range(10)] == [min(reached[number]) for number in range(10)]
