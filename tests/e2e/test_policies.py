"""Every policy serves a real trace on the engine, open loop, and changes no token."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from longspan.config import EngineConfig
from longspan.core.policies import POLICIES, create_policy
from longspan.core.policies.base import Policy
from longspan.core.state import SchedulerState
from longspan.engine.async_llm import AsyncLLM
from longspan.metrics.event_log import replay
from longspan.models.catalog import ResolvedModel
from longspan.sampling_params import SamplingParams
from longspan.workload.arrivals import poisson
from longspan.workload.traces import TraceRequest, read_trace
from longspan.workload.transforms import scaled_to, with_arrivals
from tests.conftest import DATA

REQUESTS, LONGEST, OUTPUT, RATE = 16, 700, 12, 8.0
RULES = ("edf", "fcfs", "least_slack", "srpt")  # Medha's frame with another rank
OTHERS = ("alise", "distserve", "fastserve", "splitfuse", "ssjf", "vllm")  # of other systems
FEW, SHORT = 4, 160
"""Baselines take turns on one engine, to save time; that their logs replay is tested on the simulator."""


@pytest.fixture(scope="module")
def trace() -> list[TraceRequest]:
    """Chats and long documents; their lengths scaled down, their arrivals Poisson."""
    mixed = scaled_to(read_trace(DATA / "loongserve_mixed_200.csv.gz")[:REQUESTS], LONGEST)
    return list(with_arrivals(mixed, poisson(RATE, seed=1)))


async def serve(engine: AsyncLLM, trace: list[TraceRequest], text: str) -> list[list[int]]:
    """What each request of the trace gets, greedily. Prompts are passages of a book."""
    book = engine.tokenizer.encode(text[: 40 * LONGEST])

    async def one(number: int, request: TraceRequest) -> list[int]:
        await asyncio.sleep(request.arrived_at_s or 0.0)
        prompt = book[number * 100 : number * 100 + request.num_prompt_tokens]
        params = SamplingParams(temperature=0.0, max_tokens=OUTPUT, ignore_eos=True)
        return [token async for out in engine.generate(prompt, params, str(number)) for token in out.token_ids]

    return await asyncio.gather(*(one(*numbered) for numbered in enumerate(trace)))


def settings(policy: str, instances: int, event_log: Path | None = None) -> EngineConfig:
    return EngineConfig(
        policy=policy, instances=instances, dtype="float32", executor="inproc", threads_per_device=1,
        kv_tokens=1500, event_log=event_log,
    )  # fmt: skip


def outputs(
    policy: str, trace: list[TraceRequest], text: str, instances: int, event_log: Path | None = None
) -> list[list[int]]:
    async def run() -> list[list[int]]:
        engine = await AsyncLLM.start(settings(policy, instances, event_log))
        try:
            return await serve(engine, trace, text)
        finally:
            await engine.close()

    return asyncio.run(run())


class TakingTurns:
    """Does as another policy says, which may be replaced while nothing runs."""

    name = "taking turns"
    needs_cost_model = True
    keeps_on_one_instance = False

    def __init__(self) -> None:
        self.now_at_work: Policy = create_policy("elastic_fcfs")

    def schedule(self, state: SchedulerState, now: float) -> None:
        self.now_at_work.schedule(state, now)


@pytest.fixture(scope="module")
def alone(model: ResolvedModel, trace: list[TraceRequest], moby_dick: str) -> list[list[int]]:
    """The same on one instance: DoP 1."""
    return outputs("elastic_fcfs", trace, moby_dick, instances=1)


@pytest.mark.heavy
@pytest.mark.parametrize("policy", sorted(set(POLICIES).difference(RULES, OTHERS)))
def test_a_policy_changes_no_token_and_its_log_replays(
    policy: str, trace: list[TraceRequest], moby_dick: str, alone: list[list[int]], tmp_path: Path
) -> None:
    log = tmp_path / "events.jsonl"
    assert outputs(policy, trace, moby_dick, instances=3, event_log=log) == alone
    assert replay(log) is None


@pytest.mark.heavy
def test_baselines_change_no_token(trace: list[TraceRequest], moby_dick: str) -> None:
    """Beside the default policy, which changes none either."""
    short = list(scaled_to(trace[:FEW], SHORT))

    async def run() -> dict[str, list[list[int]]]:
        taking_turns, got = TakingTurns(), {}
        engine = await AsyncLLM.start(settings("elastic_fcfs", instances=3), taking_turns)
        try:
            for policy in ("elastic_fcfs", *RULES, *OTHERS):
                taking_turns.now_at_work = create_policy(policy)
                got[policy] = await serve(engine, short, moby_dick)
        finally:
            await engine.close()
        return got

    got = asyncio.run(run())
    assert got == dict.fromkeys(got, got["elastic_fcfs"])
