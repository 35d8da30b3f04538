"""Every policy serves a real trace on the engine, open loop, and changes no token. (The model is tiny.)"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from transformers import LlamaConfig

from longspan.config import EngineConfig
from longspan.engine.assembly import start_engine
from longspan.engine.async_llm import AsyncLLM
from longspan.metrics.event_log import replay
from longspan.sampling_params import SamplingParams
from longspan.workload.arrivals import poisson
from longspan.workload.traces import TraceRequest, read_trace
from longspan.workload.transforms import scaled_to, with_arrivals
from tests.conftest import DATA
from tests.core.settings import EVERY_POLICY
from tests.models.tiny import SIZES, heads, write_tiny_engine_model

REQUESTS, LONGEST, OUTPUT, RATE = 16, 700, 12, 40.0


@pytest.fixture(scope="module")
def trace() -> list[TraceRequest]:
    """Chats and long documents; their lengths scaled down, their arrivals Poisson."""
    mixed = scaled_to(read_trace(DATA / "loongserve_mixed_200.csv.gz")[:REQUESTS], LONGEST)
    return list(with_arrivals(mixed, poisson(RATE, seed=1)))


async def serve(engine: AsyncLLM, trace: list[TraceRequest]) -> list[list[int]]:
    """What each request of the trace gets, greedily."""

    async def one(number: int, request: TraceRequest) -> list[int]:
        await asyncio.sleep(request.arrived_at_s or 0.0)
        prompt = random.Random(number).choices(range(3, SIZES["vocab_size"]), k=request.num_prompt_tokens)
        params = SamplingParams(temperature=0.0, max_tokens=OUTPUT, ignore_eos=True)
        return [token async for out in engine.generate(prompt, params, str(number)) for token in out.token_ids]

    return await asyncio.gather(*(one(*numbered) for numbered in enumerate(trace)))


def outputs(
    folder: Path, policy: str, trace: list[TraceRequest], instances: int, event_log: Path | None = None
) -> list[list[int]]:
    async def run() -> list[list[int]]:
        engine = await start_engine(
            EngineConfig(
                model=str(folder), policy=policy, instances=instances, dtype="float32", executor="inproc",
                threads_per_device=1, kv_tokens=1500, event_log=event_log, overload="off",
            )
        )  # fmt: skip
        try:
            return await serve(engine, trace)
        finally:
            await engine.close()

    return asyncio.run(run())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    write_tiny_engine_model(path, LlamaConfig(**{**SIZES, "max_position_embeddings": 2048}, **heads(6, 3, 8)))
    return path


@pytest.fixture(scope="module")
def alone(folder: Path, trace: list[TraceRequest]) -> list[list[int]]:
    """The same on one instance: DoP 1."""
    return outputs(folder, "elastic_fcfs", trace, instances=1)


@pytest.mark.parametrize("policy", EVERY_POLICY)
def test_a_policy_changes_no_token_and_its_log_replays(
    folder: Path, policy: str, trace: list[TraceRequest], alone: list[list[int]], tmp_path: Path
) -> None:
    log = tmp_path / "events.jsonl"
    assert outputs(folder, policy, trace, instances=3, event_log=log) == alone
    assert replay(log) is None
