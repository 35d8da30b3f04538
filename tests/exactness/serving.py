"""One cell of the matrix, run: requests that come, end and go away as it says, on an engine that it describes."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from longspan.config import EngineConfig
from longspan.core.policies.base import Policy
from longspan.engine.assembly import start_engine
from longspan.engine.async_llm import AsyncLLM
from longspan.outputs import EngineStats, PositionLogprobs, PromptPositions
from longspan.sampling_params import SamplingParams
from longspan.structured_outputs import StructuredOutputs
from tests.core.settings import with_options
from tests.exactness.cells import FORCED, Cell
from tests.exactness.forced_policy import ForcedPolicy
from tests.models.tiny import ORIGINAL

NUM_TOKENS = 12
PATTERN = r"(?:[ab][d-w]){2}(?:[cd][d-m]|[ab][n-w]){20,}"
"""The tiny models' tokens are two letters each, up to "dw"; "ac" is where their texts end."""
ASKED, MOST_TURNS = 3, 4
"""Tokens of a question behind an answer, and the turns of a conversation."""
STOPS_AFTER = 6
"""Tokens before the one that stops."""
TOP = 5
STUCK_S = 120.0
WORKER_TIMEOUT_S = 3.0
_BLOWS = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}
_LENGTHS = {1: (24, 12, 9, 7, 5, 3), 7: (45, 31, 22, 15, 9, 5)}
_OTHERWISE = (150, 90, 60, 31, 12, 5)
_SAMPLING = {
    "greedy": SamplingParams(temperature=0.0, logprobs=TOP, ignore_eos=True),
    "seeded": SamplingParams(temperature=1.0, seed=11, ignore_eos=True),
    "filtered": SamplingParams(
        temperature=0.8, top_k=20, top_p=0.95, min_p=0.01, repetition_penalty=1.3, presence_penalty=0.3,
        frequency_penalty=0.2, seed=12, ignore_eos=True,
    ),
}  # fmt: skip


@dataclass
class Answer:
    """What came of one request. `reason` is None until it has ended."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    prompt_logprobs: PromptPositions | None = None
    reason: str | None = None


def lengths(cell: Cell) -> list[int]:
    """Of the prompts, in the order of their arrival."""
    some, count = _LENGTHS.get(cell.chunk or 0, _OTHERWISE), 2 + 2 * cell.instances
    if cell.model == "smollm2":
        some, count = (45, 20, 12), 3
    if cell.reuse == "turns":
        return [some[-1 - turn // MOST_TURNS] + turn % MOST_TURNS * (NUM_TOKENS + ASKED) for turn in range(count)]
    if cell.reuse == "again":
        return [some[number // 2 % len(some)] for number in range(count)]
    return [some[number % len(some)] for number in range(count)]


def params_of(cell: Cell) -> SamplingParams:
    structured = StructuredOutputs(regex=PATTERN) if cell.structured else None
    return replace(
        _SAMPLING[cell.sampling], structured_outputs=structured, prompt_logprobs=TOP if cell.scored else None,
        max_tokens=1 if cell.end == "first" else NUM_TOKENS,
    )  # fmt: skip


def victims(cell: Cell) -> list[int]:
    """Requests that go away."""
    return [] if cell.aborts == "none" else [1, len(lengths(cell)) - 1]


def policy_of(cell: Cell) -> Policy | None:
    """None: the engine makes it, by name."""
    if cell.policy != FORCED:
        return None
    return ForcedPolicy(
        cell.seed, chunk=cell.chunk, retention=cell.retention, shard=cell.shard or 1 << 20,
        migrates=cell.migrates, preempts=cell.preempts, pieces=cell.layout == "pieces",
    )  # fmt: skip


def engine_config(cell: Cell, model: Path, event_log: Path) -> EngineConfig:
    in_threads = cell.executor == "threads"
    longest = max(lengths(cell)) + NUM_TOKENS
    chunks = {"chunk_size": cell.chunk or 512, "kvp_tokens_per_shard": cell.shard}
    policy = "elastic_fcfs" if cell.policy == FORCED else with_options(cell.policy, **chunks)
    # Nobody keeps slots free for others' growth, and growth runs into the end.
    tight: dict[str, Any] = {"decode_headroom": 0} if cell.pool == "small" else {}
    return EngineConfig(
        model=str(model), policy=policy, instances=cell.instances,
        pp=cell.stages, tp=cell.tp, executor="inproc" if in_threads else "multiproc",
        transport="auto" if in_threads else cell.executor, dtype="float32", threads_per_device=1,
        kv_tokens=2048 if cell.pool == "ample" else longest, lookahead=cell.lookahead,
        event_log=event_log, max_model_len=16 * ORIGINAL if cell.rope == "dynamic" else None,
        prefix_cache=cell.reuse != "none", prefix_block=1 if cell.seed % 2 else 8, worker_timeout_s=WORKER_TIMEOUT_S,
        overload="off",
        **tight,
    )  # fmt: skip


async def serve(cell: Cell, config: EngineConfig, requests: list[tuple[list[int], SamplingParams]]) -> Served:
    """Every request's answer, in order, once nothing of any is left on the instances."""
    engine = await start_engine(config, policy_of(cell))
    try:
        async with asyncio.timeout(STUCK_S):
            answers = await _Clients(cell, engine, requests).run()
            await engine.idle()
            while engine.stats().num_losses < (cell.loss != "none"):  # one that stands still is noticed in time
                await asyncio.sleep(0.05)
        engine.core.scheduler.check_invariants()
        return Served(answers, engine.stats())
    finally:
        await engine.close()


@dataclass(frozen=True)
class Served:
    answers: list[Answer]
    stats: EngineStats


class _Clients:
    def __init__(self, cell: Cell, engine: AsyncLLM, requests: list[tuple[list[int], SamplingParams]]) -> None:
        self.cell, self.engine, self.requests = cell, engine, requests
        self.victims = victims(cell)
        self.answers = [Answer() for _ in requests]
        self.tasks: list[asyncio.Task[None]] = []
        self.draw = random.Random(cell.seed)
        self.due = -1 if cell.loss == "none" else self.draw.randint(0, 2 * len(requests))

    async def run(self) -> list[Answer]:
        self._arrive()
        self._strike_at(0)
        while self.cell.arrivals == "together" and len(self.tasks) < len(self.requests):
            self._arrive()
        for task in self.tasks:  # may grow meanwhile
            await task
        self._strike_at(self.due)
        return self.answers

    def _strike_at(self, tokens: int) -> None:
        """Hit a worker, if that is due when so many tokens have come."""
        if 0 <= self.due <= tokens:
            self.due = -1
            os.kill(self.draw.choice(self.draw.choice(self.engine.instances()).pids), _BLOWS[self.cell.loss])

    def _arrive(self) -> None:
        number = len(self.tasks)
        self.tasks.append(asyncio.create_task(self._ask(number)))
        if number in self.victims and self.cell.aborts == "at_once":
            asyncio.get_running_loop().call_soon(self.engine.abort, str(number))

    async def _ask(self, number: int) -> None:
        answer = self.answers[number]
        stream = self.engine.generate(*self.requests[number], str(number))
        async for out in stream:
            answer.tokens += out.token_ids
            answer.text += out.text
            answer.logprobs += out.logprobs or ()
            answer.prompt_logprobs = out.prompt_logprobs or answer.prompt_logprobs
            answer.reason = out.finish_reason
            self._on_token(number, len(answer.tokens))
            if number in self.victims[:1] and self._is_half_way(len(answer.tokens)):
                break  # as a client that closes its connection
        await stream.aclose()
        self._next_may_come(number)

    def _on_token(self, number: int, count: int) -> None:
        self._next_may_come(number)
        self._strike_at(sum(len(answer.tokens) for answer in self.answers))
        if self.cell.aborts == "beside" and number == 0 and count == NUM_TOKENS // 3:
            for victim in self.victims:
                self.engine.abort(str(victim))
        if number in self.victims[1:] and self._is_half_way(count):
            self.engine.abort(str(number))

    def _is_half_way(self, count: int) -> bool:
        return self.cell.aborts == "middle" and count >= NUM_TOKENS // 2

    def _next_may_come(self, number: int) -> None:
        if number == len(self.tasks) - 1 and len(self.tasks) < len(self.requests):
            self._arrive()
