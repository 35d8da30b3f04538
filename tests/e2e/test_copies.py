"""Prefixes are copied between instances of a real engine, at every chance: the tokens are those of no cache at all."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from itertools import permutations
from pathlib import Path

import pytest
from transformers import LlamaConfig

from longspan.config import EngineConfig
from longspan.core.actions import MigrateKV
from longspan.core.news import News
from longspan.core.state import SchedulerState
from longspan.engine.assembly import start_engine
from longspan.engine.async_llm import AsyncLLM
from longspan.metrics.event_log import read_event_log, replay
from longspan.sampling_params import SamplingParams
from tests.core.random_policy import RandomPolicy
from tests.models.tiny import SIZES, heads, write_tiny_engine_model

PARAMS = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
WITHIN_S = 120.0


class Copying(RandomPolicy):
    """Whatever is cached of a waiting request's tokens goes to every instance; else it does anything that is legal."""

    name = "copying"

    def schedule(self, state: SchedulerState, news: News, now: float) -> None:
        for request in state.waiting:
            for source, target in permutations([instance.id for instance in state.cluster.idle()], 2):
                if state.copy(request, source, target) is not None:
                    break
        super().schedule(state, news, now)

    def _refuse(self, state: SchedulerState) -> None:
        """Everybody is answered."""


def prompts() -> list[list[int]]:
    """Three documents, and questions about each."""
    draw = random.Random(3)
    documents = [draw.choices(range(3, SIZES["vocab_size"]), k=tokens) for tokens in (150, 70, 33)]
    return [[*documents[number % 3], *draw.choices(range(3, 90), k=draw.randint(1, 40))] for number in range(18)]


async def answers(config: EngineConfig, policy: Copying | None, *, is_hit: bool = False) -> list[list[int]]:
    running: AsyncLLM = await start_engine(config, policy)
    given = prompts()
    tokens: list[list[int]] = [[] for _ in given]

    async def ask(number: int) -> None:
        async for output in running.generate(given[number], PARAMS, str(number)):
            tokens[number] += output.token_ids

    try:
        async with asyncio.timeout(WITHIN_S):
            await asyncio.gather(*(ask(number) for number in range(3)))
            others = asyncio.gather(*(ask(number) for number in range(3, len(given))))
            if is_hit:
                while sum(map(len, tokens)) < 60:
                    await asyncio.sleep(0.01)
                os.kill(running.instances()[1].pids[0], signal.SIGKILL)
            await others
            await running.idle()
        assert running.stats().kv_tokens_used == 0
        running.core.scheduler.check_invariants()
    finally:
        await running.close()
    return tokens


@pytest.mark.parametrize(("executor", "is_hit"), [("inproc", False), ("multiproc", False), ("multiproc", True)])
def test_what_was_copied_is_what_it_was(tmp_path: Path, executor: str, is_hit: bool) -> None:
    write_tiny_engine_model(tmp_path, LlamaConfig(**SIZES | {"max_position_embeddings": 512}, **heads(4, 2, 16)))
    log = tmp_path / "events.jsonl"
    config = EngineConfig(
        model=str(tmp_path), instances=3, dtype="float32", threads_per_device=1, kv_tokens=1500, executor=executor,
        policy="elastic_fcfs", prefix_block=8, event_log=log,
    )  # fmt: skip
    policy = Copying(7)
    got = asyncio.run(answers(config, policy, is_hit=is_hit))
    plain = EngineConfig(
        model=str(tmp_path), instances=1, dtype="float32", threads_per_device=1, kv_tokens=6000, executor="inproc",
        prefix_cache=False,
    )  # fmt: skip
    assert got == asyncio.run(answers(plain, None))
    assert replay(log, Copying(7)) is None
    copies = [action for record in read_event_log(log) for action in record.actions
              if isinstance(action, MigrateKV) and action.is_copy]  # fmt: skip
    assert len(copies) > 5
