"""From prompts to the engine's outputs: encode, check, run side by side, count."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from secrets import token_hex
from typing import TypeVar, cast

from longspan.core.events import FinishReason
from longspan.engine.protocol import EngineClient
from longspan.entrypoints.openai.context import Context
from longspan.entrypoints.openai.errors import ModelNotFoundError
from longspan.entrypoints.openai.limits import check_choices
from longspan.entrypoints.openai.responses import Usage
from longspan.errors import EngineDeadError, EngineDrainingError, RequestError
from longspan.outputs import PositionLogprobs, RequestOutput
from longspan.sampling_params import SamplingParams

T = TypeVar("T")

LONG_TEXT = 8192  # characters; less takes the tokenizer about a millisecond, and is not worth a thread


@dataclass(frozen=True, slots=True)
class Job:
    """One choice: one request to the engine."""

    index: int
    prompt_token_ids: Sequence[int]
    params: SamplingParams
    request_id: str


@dataclass(slots=True)
class Text:
    """One choice, as far as it came."""

    pieces: list[str] = field(default_factory=list)
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    finish_reason: FinishReason = "stop"
    stop_reason: str | int | None = None

    def add(self, output: RequestOutput) -> None:
        self.pieces.append(output.text)
        self.logprobs.extend(output.logprobs or ())
        if output.finish_reason is not None:
            self.finish_reason = output.finish_reason
            self.stop_reason = output.stop_reason

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class UsageCount:
    """Each prompt counts once, however many choices it has, as for OpenAI."""

    def __init__(self, prompts: Sequence[Sequence[int]]) -> None:
        self.prompt_tokens = sum(map(len, prompts))
        self.completion_tokens = 0

    def add(self, output: RequestOutput) -> None:
        self.completion_tokens += len(output.token_ids)

    def usage(self) -> Usage:
        return Usage(self.prompt_tokens, self.completion_tokens, self.prompt_tokens + self.completion_tokens)


def check_servable(context: Context, model: str | None) -> None:
    """Cheap refusals, before anything is encoded. No model means the one that is served."""
    engine = context.engine
    if model is not None and model != engine.model_name:
        raise ModelNotFoundError(f"the model {model!r} does not exist; this server has {engine.model_name!r}")
    if engine.error is not None:
        raise EngineDeadError(f"the engine is dead: {engine.error}")
    if engine.draining:
        raise EngineDrainingError("the server is shutting down")


async def encode(work: Callable[[], T], num_characters: int, param: str) -> T:
    """What `work` makes of a text. A long one is encoded on a thread, so that streams go on meanwhile."""
    try:
        return await asyncio.to_thread(work) if num_characters > LONG_TEXT else work()
    except UnicodeEncodeError as error:
        raise RequestError(f"{param} is not valid Unicode: {error.reason}", param=param) from error


def make_jobs(
    context: Context,
    answer_id: str,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    n: int,
    param: str,
) -> list[Job]:
    """`n` choices for each prompt, all checked before the first one runs. Raises RequestError."""
    engine = context.engine
    check_choices(engine, n * len(prompts), param if n == 1 else "n")
    jobs: list[Job] = []
    run_id = f"{answer_id}-{token_hex(4)}"  # a client may use its X-Request-Id twice, the engine may not
    for prompt in prompts:
        resolved = _validate(engine, prompt, params, param)
        for choice in range(n):
            # Choices of one prompt with the same seed would be the same text: each has its own, as in vLLM.
            seed = None if resolved.seed is None else resolved.seed + choice
            index = len(jobs)
            jobs.append(Job(index, prompt, replace(resolved, seed=seed), f"{run_id}-{index}"))
    return jobs


def _validate(
    engine: EngineClient, prompt: Sequence[int], params: SamplingParams, param: str
) -> SamplingParams:
    """The engine's check, with the prompt under the name that the client knows it by."""
    try:
        return engine.validate(prompt, params)
    except RequestError as error:
        if error.param == "prompt":
            error.param = param
        raise


async def collect(context: Context, jobs: Sequence[Job], usage: UsageCount) -> list[Text]:
    """The whole texts, in the jobs' order."""
    texts = [Text() for _ in jobs]
    async with aclosing(run(context, jobs)) as outputs:
        async for job, output in outputs:
            usage.add(output)
            texts[job.index].add(output)
    return texts


async def run(context: Context, jobs: Sequence[Job]) -> AsyncGenerator[tuple[Job, RequestOutput], None]:
    """The outputs of all jobs as they come. An error of one ends all; closing this aborts all."""
    if len(jobs) == 1:
        async with aclosing(_run_one(context, jobs[0])) as outputs:
            async for output in outputs:
                yield jobs[0], output
        return
    arrived: asyncio.Queue[tuple[Job, RequestOutput] | Exception | None] = asyncio.Queue()
    pumps = [asyncio.create_task(_pump(context, job, arrived)) for job in jobs]
    try:
        running = len(pumps)
        while running:
            item = await arrived.get()
            if item is None:
                running -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield item
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.wait(pumps)


async def _pump(
    context: Context, job: Job, arrived: asyncio.Queue[tuple[Job, RequestOutput] | Exception | None]
) -> None:
    try:
        async with aclosing(_run_one(context, job)) as outputs:
            async for output in outputs:
                arrived.put_nowait((job, output))
        arrived.put_nowait(None)
    except Exception as error:
        arrived.put_nowait(error)


async def _run_one(context: Context, job: Job) -> AsyncGenerator[RequestOutput, None]:
    """One job's outputs, measured. An answer that the server cut short is an error, not a finish reason."""
    engine = context.engine
    metrics = context.metrics.request()
    # EngineClient promises an iterator that can be closed; typing has only AsyncGenerator for that.
    outputs = cast(
        AsyncGenerator[RequestOutput, None], engine.generate(job.prompt_token_ids, job.params, job.request_id)
    )
    try:
        async for output in outputs:
            metrics.observe(output)
            if output.finish_reason == "abort":
                break
            yield output
            if output.finished:
                return
    finally:
        await outputs.aclose()
        metrics.close()
    if engine.draining:
        raise EngineDrainingError("the server shut down before the answer was complete")
    raise EngineDeadError(f"the answer was cut short: {engine.error or 'the engine aborted the request'}")
