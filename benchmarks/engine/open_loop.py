"""Requests played to an engine in this process, open loop: each leaves when it is due, however slow the engine is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.common import fixed_output, random_prompt, say
from longspan.config import EngineConfig
from longspan.engine.assembly import start_engine
from longspan.engine.async_llm import AsyncLLM
from longspan.errors import LongspanError
from longspan.metrics.request_metrics import Outcome, RequestRecord
from longspan.workload.traces import TraceRequest


def shape(requests: Sequence[TraceRequest]) -> dict[str, Any]:
    return {
        "requests": len(requests),
        "prompt_tokens": sum(request.num_prompt_tokens for request in requests),
        "output_tokens": sum(request.num_output_tokens for request in requests),
    }


async def serve(config: EngineConfig, requests: Sequence[TraceRequest]) -> list[RequestRecord]:
    """By an engine of their own. Prompts are random tokens, outputs have their lengths exactly."""
    engine = await start_engine(config)
    try:
        return await play(engine, requests)
    finally:
        await engine.close()


async def play(engine: AsyncLLM, requests: Sequence[TraceRequest]) -> list[RequestRecord]:
    prompts = [random_prompt(request.num_prompt_tokens, number) for number, request in enumerate(requests)]
    begin = time.monotonic()

    async def one(number: int, request: TraceRequest) -> RequestRecord:
        due = begin + (request.arrived_at_s or 0.0)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        times: list[float] = []
        outcome: Outcome = "finished"
        params = fixed_output(request.num_output_tokens)
        try:
            async for _ in engine.generate(prompts[number], params, f"{begin}-{number}"):
                times.append(time.monotonic())
        except LongspanError as error:
            say(f"request {number}: {error}")
            outcome = "failed"
        return RequestRecord(
            arrived_s=due, ended_s=time.monotonic(), num_prompt_tokens=request.num_prompt_tokens,
            num_output_tokens=len(times), token_times_s=times, outcome=outcome,
        )  # fmt: skip

    return await asyncio.gather(*(one(*numbered) for numbered in enumerate(requests)))
