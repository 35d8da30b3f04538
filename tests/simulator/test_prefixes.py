"""Traces that tell the blocks of their prompts: what of them is found, beside what a pool without bounds would find."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from longspan.core.events import RequestArrived
from longspan.metrics.event_log import EventLogWriter, read_event_log, replay
from longspan.profiler.simulated import fit_simulated
from longspan.simulator.prefixes import Prefixes
from longspan.simulator.simulator import Simulation, Simulator
from longspan.workload.traces import TraceRequest

from .examples import small_world


def talks(turns: int, every_s: float, num_talks: int = 3) -> list[TraceRequest]:
    """Conversations side by side: each turn has all blocks of the one before, and one more."""
    return [
        TraceRequest(turn * every_s + talk, 512 * turn + 300, 5, tuple(range(1000 * talk, 1000 * talk + turn + 1)))
        for turn in range(turns)
        for talk in range(num_talks)
    ]


def simulate(requests: list[TraceRequest], policy: str, kv_tokens: int, on: bool = True) -> Simulation:
    config, cost = small_world(policy)
    config = replace(config, kv_tokens=kv_tokens, prefix_cache=on)
    return Simulator(config, cost, cost_model=fit_simulated(cost, config, 8000)).run(requests)


@pytest.mark.parametrize("policy", ["longspan", "elastic_fcfs", "medha", "loongserve", "vllm"])
def test_turns_find_what_came_before(policy: str) -> None:
    requests = talks(6, every_s=1000.0)
    result = simulate(requests, policy, 20_000)
    found = result.prefixes
    assert found.num_looked_up == found.num_arrived == sum(request.num_prompt_tokens for request in requests)
    # What a prompt has of its last block, the next turn's prompt has, too.
    assert found.num_seen == sum((512 * (turn - 1) + 300) // 16 * 16 for turn in range(1, 6)) * 3
    assert 0.9 * found.num_seen <= found.num_found <= found.num_seen or policy == "vllm"
    without = simulate(requests, policy, 20_000, on=False)
    assert (without.prefixes.num_looked_up, without.prefixes.num_arrived) == (0, 0)
    assert sum(r.record.e2e_s for r in result.requests) < sum(r.record.e2e_s for r in without.requests)


def test_a_small_pool_finds_less() -> None:
    rates = [simulate(talks(8, every_s=200.0, num_talks=8), "elastic_fcfs", room).prefixes.hit_rate
             for room in (3_000, 6_000, 60_000)]  # fmt: skip
    assert rates == sorted(rates) and rates[0] < rates[-1]


def test_it_replays(tmp_path: Path) -> None:
    config, cost = small_world("longspan")
    config = replace(config, kv_tokens=6_000)
    model = fit_simulated(cost, config, 8000)
    with EventLogWriter(tmp_path / "log", config, model, run="test") as writer:
        Simulator(config, cost, cost_model=model, event_log=writer).run(talks(8, every_s=100.0, num_talks=6))
    assert replay(tmp_path / "log") is None
    arrivals = [record.event for record in read_event_log(tmp_path / "log")]
    assert all(event.prefix_keys for event in arrivals if isinstance(event, RequestArrived))


def test_prompts_have_keys_in_common_exactly_where_their_blocks_are_the_same() -> None:
    draw = random.Random(3)
    for _ in range(200):
        one = tuple(draw.choices(range(3), k=3))
        other = (*one[: draw.randrange(4)], *draw.choices(range(3), k=3))
        prefixes = Prefixes(64)
        keys = [prefixes.keys(TraceRequest(0.0, 512 * len(ids), 1, ids)) for ids in (one, other)]
        alike = next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 3)
        same = next((place for place in range(0, 3 * 8 * 16, 16) if keys[0][place:][:16] != keys[1][place:][:16]), 384)
        assert same == alike * 8 * 16
