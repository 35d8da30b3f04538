"""The policy `longspan`: what teams do beside decodes, and what becomes of their KV."""

from __future__ import annotations

from itertools import pairwise

import pytest

from longspan.config import SchedulerConfig
from longspan.core.actions import MigrateKV, RunBatch
from longspan.service_level import ServiceLevel

from .driver import Driver
from .longspan import Run, arrival, plain, played

RING = {"fixed": 0.005, "fixed_step": 0.01}
"""Two instances take 25 ms of each iteration, whatever is in it: a quarter of 88 ms, a tenth of 250."""


def chunks(found: Run, name: str) -> list[tuple[float, RunBatch, float]]:
    """The batches in which a prompt had a chunk."""
    return [
        (at, batch, took)
        for at, batch, took in found.took
        if any(segment.request_id == name and segment.length > 1 for segment in batch.segments)
    ]


def holders(found: Run, name: str) -> set[int]:
    """Where a request's KV was in the end, by what was stored and moved."""
    tokens: dict[int, int] = {}
    for _, _, actions in found.steps:
        for action in actions:
            if isinstance(action, RunBatch):
                for segment in action.segments:
                    if segment.request_id == name:
                        for kept in segment.store:
                            tokens[kept.instance] = tokens.get(kept.instance, 0) + kept.length
            elif isinstance(action, MigrateKV) and action.request_id == name:
                tokens[action.source] -= action.num_tokens
                tokens[action.target] = tokens.get(action.target, 0) + action.num_tokens
    return {number for number, left in tokens.items() if left}


def tpot_s(found: Run, name: str) -> float:
    times = found.played[name].token_times
    return (times[-1] - times[0]) / (len(times) - 1)


def beside_a_decode(policy: str, asked_s: float | None = None, slowdown: float = 1.0) -> Run:
    """asked_s: the TPOT of the decode."""
    short = arrival(0.0, "short", 50, 400, ServiceLevel(tpot_s=asked_s))
    long = arrival(1.0, "long", 20_000, 3, ServiceLevel(ttft_s=60.0))
    return played([short, long], plain(2, **RING), num_instances=2, policy=policy, slowdown=lambda batch: slowdown)


def test_a_team_saves_up_for_long_iterations() -> None:
    """Between them decodes go on alone, and so their mean pace is kept; less goes to the ring."""
    found = beside_a_decode("longspan:team_burst=5:team_fixed_share=0.1")
    wide = chunks(found, "long")
    assert all(len(batch.group) == 2 for _, batch, _ in wide)
    paced = [took for at, _, took in wide if at < found.played["short"].token_times[-1]]
    assert len(paced) > 5
    assert min(paced[:-1]) > 0.2  # the last chunk is what is left
    assert tpot_s(found, "short") <= 0.1
    each = beside_a_decode("longspan:team_burst=1:team_fixed_share=1")
    assert all(len(batch.group) == 2 for _, batch, _ in chunks(each, "long"))
    assert max(took for at, _, took in chunks(each, "long") if at < each.played["short"].token_times[-1]) < 0.23
    assert found.played["long"].ttft_s < each.played["long"].ttft_s


@pytest.mark.parametrize("asked_s", [0.03, 0.05, 0.2])
def test_a_team_saves_up_by_the_tpot_that_the_decodes_ask_for(asked_s: float) -> None:
    """A tighter one than the default leaves it shorter iterations, a laxer one longer ones."""
    found = beside_a_decode("longspan:team_burst=5:team_fixed_share=0.02", asked_s)
    ends = found.played["short"].token_times[-1]
    beside = [took for at, _, took in chunks(found, "long") if at < ends]
    assert len(beside) > 5
    assert 4 * asked_s < max(beside) <= 5 * asked_s
    assert tpot_s(found, "short") <= asked_s


@pytest.mark.parametrize(("asked_s", "slowdown"), [(0.1, 1.3), (0.05, 1.3), (0.06, 4.7)])
def test_a_team_does_not_save_up_for_what_never_comes(asked_s: float, slowdown: float) -> None:
    """On a machine slower than predicted its iterations stay shorter; and decodes may not get ahead at all."""
    found = beside_a_decode("longspan:team_burst=3:team_fixed_share=0.1", asked_s, slowdown)
    ends = min(found.played["short"].token_times[-1], found.played["long"].token_times[0])
    begun = [1.0, *[at for at, _, _ in chunks(found, "long") if at < ends], ends]
    assert max(after - before for before, after in pairwise(begun)) < 2.0


def test_who_has_just_begun_to_decode_is_kept_in_pace_too() -> None:
    """The mean of three gaps, and of any number more."""
    for outputs in (4, 6, 11):
        short, long = arrival(0.3, "short", 50, outputs), arrival(0.0, "long", 20_000)
        found = played([long, short], plain(), num_instances=1)
        assert tpot_s(found, "short") <= 0.1


@pytest.mark.parametrize("tokens", [600, 20_000])
def test_a_team_s_kv_comes_together_to_decode(tokens: int) -> None:
    """What fits one iteration is kept on one instance at once; else each of the others hands over its part once."""
    found = played([arrival(0.0, "long", tokens, 40)], plain(4, fixed_step=1e-4), num_instances=4)
    assert {len(batch.group) for _, batch, _ in chunks(found, "long")} == {4}
    assert len(holders(found, "long")) == 1
    moves = [action for _, _, actions in found.steps for action in actions if isinstance(action, MigrateKV)]
    assert len(moves) == (0 if len(chunks(found, "long")) == 1 else 3)
    decodes = [batch for _, batch, _ in found.took if all(segment.length == 1 for segment in batch.segments)]
    assert len(decodes[-1].group) == 1


def test_kv_that_fits_no_instance_stays_where_it_is() -> None:
    found = played([arrival(0.0, "long", 900, 20)], plain(4, per_token=1e-2), num_instances=4, kv_tokens=400)
    assert found.played["long"].ttft_s > 0.0
    assert len(holders(found, "long")) > 1


def test_an_instance_does_not_wait_for_a_prompt_whose_turn_does_not_come() -> None:
    """Behind a team that prefills on 2 and 3, a prompt lower in rank has KV on 1 and 2: instance 1 goes on."""
    wide = arrival(0.0, "wide", 5_000, 1, ServiceLevel(ttft_s=400.0))
    first = arrival(2.0, "first", 3_000, 1, ServiceLevel(ttft_s=30.0))
    short = arrival(2.5, "short", 50, 60)
    found = played([wide, first, short], plain(4), num_instances=4, policy="longspan:team=2")
    assert tpot_s(found, "short") <= 0.1
    assert {"wide", "first", "short"} <= found.played.keys()


def test_a_last_chunk_leaves_decodes_of_its_batch_their_slots() -> None:
    """The chunk goes where the prefix is that it took over, unless a decode beside it needs the last slot there."""
    limits = {"max_batch_tokens": 1, "max_batch_requests": 1, "decode_headroom": 0, "prefix_block": 1}
    config = SchedulerConfig(num_instances=2, kv_tokens=9, overload="off", lookahead=False, **limits)
    costs = plain(2, fixed=0.0, per_token=0.0, per_pair=0.01, decode_fixed=0.0)
    for seed in range(20):
        driver = Driver(config, seed=seed, cost_model=costs)
        for tokens, most in ((6, 4), (6, 12), (6, 5), (4, 4)):
            driver.arrive([1] * tokens, most)
        driver.finish(in_order=False)
