"""Workers are killed and stopped while streams are open: all go on, with the tokens that they would have got anyway."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from transformers import LlamaConfig

from longspan.config import EngineConfig
from longspan.core.actions import CancelBatch, MigrateKV, RunBatch
from longspan.engine.assembly import start_engine
from longspan.engine.async_llm import AsyncLLM
from longspan.errors import EngineDeadError
from longspan.metrics.event_log import read_event_log, replay
from longspan.sampling_params import SamplingParams
from tests.models.tiny import SIZES, heads, write_tiny_engine_model

INSTANCES, TOKENS, WITHIN_S = 3, 120, 120.0
LENGTHS = (5, 40, 300, 700, 9, 120, 60, 15)
BLOWS = ((signal.SIGKILL, 1), (signal.SIGSTOP, 0))
"""What is done to the workers of which instance, one after the other."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    write_tiny_engine_model(path, LlamaConfig(**SIZES | {"max_position_embeddings": 2048}, **heads(4, 2, 16)))
    return path


@asynccontextmanager
async def engine(folder: Path, **settings: object) -> AsyncIterator[AsyncLLM]:
    config = EngineConfig(
        model=str(folder), instances=INSTANCES, dtype="float32", threads_per_device=1,
        worker_timeout_s=3.0, **{"kv_tokens": 2000, "max_restarts": 20, "overload": "off", **settings},  # type: ignore[arg-type]  # of any kind
    )  # fmt: skip
    running = await start_engine(config)
    try:
        yield running
    finally:
        await running.close()


class Streams:
    """Requests of random tokens, some of them sampled, each on its way."""

    def __init__(self, running: AsyncLLM, name: str) -> None:
        self.running = running
        self.name = name
        self.tokens: list[list[int]] = [[] for _ in LENGTHS]
        self.tasks = [asyncio.create_task(self._stream(number)) for number in range(len(LENGTHS))]

    async def _stream(self, number: int) -> None:
        prompt = random.Random(number).choices(range(3, SIZES["vocab_size"]), k=LENGTHS[number])
        params = SamplingParams(
            temperature=float(number % 3 == 2), seed=number, max_tokens=TOKENS, ignore_eos=True, presence_penalty=0.2
        )
        async for output in self.running.generate(prompt, params, f"{self.name}-{number}"):
            self.tokens[number].extend(output.token_ids)

    async def have(self, tokens: Sequence[int]) -> None:
        """Wait until each has so many tokens, or its last."""
        async with asyncio.timeout(WITHIN_S):
            while any(len(one) < min(TOKENS, most) for one, most in zip(self.tokens, tokens, strict=True)):
                for task in self.tasks:
                    if task.done():
                        task.result()
                await asyncio.sleep(0.01)

    async def end(self) -> list[list[int]]:
        async with asyncio.timeout(WITHIN_S):
            await asyncio.gather(*self.tasks)
        return self.tokens


async def has_restarted(running: AsyncLLM, instance: int, restarts: int) -> None:
    async with asyncio.timeout(WITHIN_S):
        while (report := running.instances()[instance]).state != "serving" or report.restarts < restarts:
            await asyncio.sleep(0.05)


def at_most_recomputed(log: Path, held: int) -> int:
    """What the lost held, and what void batches were to compute."""
    running: dict[int, int] = {}
    for record in read_event_log(log):
        for action in record.actions:
            if isinstance(action, RunBatch):
                running[action.batch_id] = sum(segment.length for segment in action.segments)
            elif isinstance(action, CancelBatch):
                held += sum(running[batch_id] for batch_id in action.batch_ids)
    return held


HEAVY = pytest.mark.heavy


@pytest.mark.parametrize(
    "policy", ["longspan", pytest.param("medha", marks=HEAVY), pytest.param("elastic_fcfs", marks=HEAVY)]
)
def test_streams_go_on_with_the_same_tokens(folder: Path, tmp_path: Path, policy: str) -> None:
    log = tmp_path / "events.jsonl"

    async def run() -> None:
        async with engine(folder, policy=policy, event_log=log) as running:
            expected = await Streams(running, "undisturbed").end()
            streams, held = Streams(running, "disturbed"), 0
            for turn, (blow, instance) in enumerate(BLOWS):
                await streams.have([20 * (turn + 1)] * len(LENGTHS))
                held += running.stats().kv_tokens_used_by_instance[instance] + len(LENGTHS)
                os.kill(running.instances()[instance].pids[0], blow)
                before = [len(one) for one in streams.tokens]
                await streams.have([count + 3 for count in before])
            assert await streams.end() == expected
            for _, instance in BLOWS:
                await has_restarted(running, instance, 1)
            stats = running.stats()
            assert (stats.num_losses, stats.num_missing) == (len(BLOWS), 0)
            assert 0 < stats.num_recomputed <= at_most_recomputed(log, held)
            assert await Streams(running, "afterwards").end() == expected
            await running.idle()
            assert running.stats().kv_tokens_used == 0

    asyncio.run(run())
    assert replay(log) is None


@HEAVY
def test_instances_leave_and_come_while_streams_go_on(folder: Path) -> None:
    """One is added, one restarted, one removed: no stream has an error, or another token."""

    async def until(running: AsyncLLM, instance: int, state: str, restarts: int = 0) -> None:
        async with asyncio.timeout(WITHIN_S):
            while (report := running.instances()[instance]).state != state or report.restarts < restarts:
                await asyncio.sleep(0.05)

    async def run() -> None:
        async with engine(folder, policy="longspan") as running:
            expected = await Streams(running, "undisturbed").end()
            streams = [Streams(running, "first")]
            await streams[0].have([5] * len(LENGTHS))
            running.leave(0, "restart")
            await until(running, 0, "serving", restarts=1)
            streams.append(Streams(running, "second"))
            assert running.add_instance() == INSTANCES
            await until(running, INSTANCES, "serving")
            added = running.instances()[INSTANCES]
            assert (added.why, added.restarts) == ("", 0), "nothing has ended its workers yet"
            streams.append(Streams(running, "third"))
            await streams[-1].have([5] * len(LENGTHS))
            running.leave(1, "remove")
            await until(running, 1, "removed")
            for each in streams:
                assert await each.end() == expected
            assert await Streams(running, "afterwards").end() == expected
            stats = running.stats()
            assert (stats.num_losses, stats.num_missing, stats.num_instances) == (0, 0, INSTANCES + 1)

    asyncio.run(run())


@pytest.mark.parametrize("policy", ["longspan", pytest.param("elastic_fcfs", marks=HEAVY)])
def test_what_is_cached_is_found_after_all_were_restarted(folder: Path, tmp_path: Path, policy: str) -> None:
    """It moves to others while streams go on; who goes on from it gets the tokens that it would have got anyway."""
    draw, log = random.Random(5), tmp_path / "events.jsonl"
    prompts = [draw.choices(range(3, SIZES["vocab_size"]), k=tokens) for tokens in (300, 200, 250, 100)]
    params = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)

    async def ask(running: AsyncLLM, prompt: list[int], name: str) -> tuple[list[int], int]:
        tokens, found = list[int](), 0
        async for output in running.generate(prompt, params, name):
            tokens.extend(output.token_ids)
            found = max(found, output.num_cached_tokens)
        return tokens, found

    async def run() -> None:
        async with engine(folder, policy=policy, event_log=log, kv_tokens=6000) as running:
            expected = await Streams(running, "undisturbed").end()
            before = [await ask(running, prompt, f"before {number}") for number, prompt in enumerate(prompts)]
            streams = Streams(running, "disturbed")
            await streams.have([5] * len(LENGTHS))
            for instance in range(INSTANCES):
                running.leave(instance, "restart")
                await has_restarted(running, instance, 1)
            assert await streams.end() == expected
            for number, (prompt, (tokens, _)) in enumerate(zip(prompts, before, strict=True)):
                again, found = await ask(running, prompt, f"after {number}")
                assert again == tokens and found >= len(prompt) - 16, "it was moved, and is what it was"
            await running.idle()
            assert running.stats().kv_tokens_used == 0

    asyncio.run(run())
    assert replay(log) is None
    moves = [action for record in read_event_log(log) for action in record.actions if isinstance(action, MigrateKV)]
    assert any(not move.request_id for move in moves)


@HEAVY
def test_without_restarts_the_last_one_ends_the_engine(folder: Path) -> None:
    """Until then /health has something to say, and streams go on."""

    async def run() -> None:
        async with engine(folder, max_restarts=0) as running:
            streams = Streams(running, "streams")
            for instance in range(INSTANCES):
                await streams.have([5 * (instance + 1)] * len(LENGTHS))
                assert running.error is None and running.stalled is None
                os.kill(running.instances()[instance].pids[0], signal.SIGKILL)
            with pytest.raises(EngineDeadError, match="no instance is left"):
                await streams.end()
            assert [report.state for report in running.instances()] == ["missing"] * INSTANCES

    asyncio.run(run())
