"""From prompts to the engine's outputs: check, run side by side, count."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import cast

from longspan.core.events import FinishReason
from longspan.engine.protocol import EngineClient, TokenIds
from longspan.entrypoints.openai.answers import PromptTokensDetails, Usage
from longspan.entrypoints.openai.api_keys import charge_tokens
from longspan.entrypoints.openai.context import Context
from longspan.entrypoints.openai.errors import ModelNotFoundError, ending
from longspan.entrypoints.openai.limits import choices_at_once
from longspan.entrypoints.openai.protocol import as_seed
from longspan.entrypoints.openai.quoting import quoted
from longspan.entrypoints.openai.request_fields import Names
from longspan.entrypoints.openai.structure import named
from longspan.entrypoints.openai.tenants import salt_of_request, tenant_of_request
from longspan.errors import EngineDeadError, EngineDrainingError, RequestError
from longspan.metrics.prometheus import Arrival, RequestMetrics
from longspan.outputs import PositionLogprobs, PromptPositions, RequestOutput
from longspan.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class Job:
    """One choice: one request to the engine."""

    index: int
    prompt_token_ids: TokenIds
    params: SamplingParams
    request_id: str
    metrics: RequestMetrics


@dataclass(slots=True)
class Text:
    """One choice, as far as it came."""

    pieces: list[str] = field(default_factory=list)
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    prompt_logprobs: PromptPositions | None = None
    finish_reason: FinishReason = "stop"
    stop_reason: str | int | None = None

    def add(self, output: RequestOutput) -> None:
        self.pieces.append(output.text)
        self.logprobs.extend(output.logprobs or ())
        self.prompt_logprobs = self.prompt_logprobs or output.prompt_logprobs
        if output.finish_reason is not None:
            self.finish_reason = output.finish_reason
            self.stop_reason = output.stop_reason

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class UsageCount:
    """Each prompt counts once, however many choices it has, as for OpenAI."""

    def __init__(self, context: Context, prompts: Sequence[TokenIds], choices: int) -> None:
        """choices: of each prompt."""
        self.prompt_tokens = sum(map(len, prompts))
        self.completion_tokens = 0
        self._choices = choices
        self._cached: dict[int, int] | None = {} if context.engine.config.prefix_cache else None

    def add(self, job: Job, output: RequestOutput) -> None:
        self.completion_tokens += len(output.token_ids)
        if self._cached is not None:  # what the first of its choices found; the others find that
            prompt, found = job.index // self._choices, output.num_cached_tokens
            self._cached[prompt] = min(self._cached.get(prompt, found), found)

    @property
    def cached_tokens(self) -> int:
        """Of the prompts, those that did not have to be computed."""
        return sum((self._cached or {}).values())

    def usage(self) -> Usage:
        usage = Usage(self.prompt_tokens, self.completion_tokens, self.prompt_tokens + self.completion_tokens)
        if self._cached is not None:
            usage.prompt_tokens_details = PromptTokensDetails(self.cached_tokens)
        return usage


def check_servable(context: Context, model: str | None) -> None:
    """Refuse cheaply, before anything is encoded. No model means the one that is served."""
    engine = context.engine
    if model is not None and model != engine.model_name:
        raise ModelNotFoundError(
            f"the model {quoted(model)} does not exist; this server has {engine.model_name!r}", param="model"
        )
    if engine.error is not None:
        raise EngineDeadError(f"the engine is dead: {engine.error}")
    if engine.draining:
        raise EngineDrainingError("the server is shutting down")


async def prepare(context: Context, params: SamplingParams, structured_by: str | None) -> None:
    """Have a grammar tried out, if the answer must keep to one. structured_by: the field that says so.

    Raises RequestError, QueueFullError.
    """
    if structured_by is None:
        return
    try:
        await context.engine.prepare(params)
    except RequestError as error:
        raise named(error, structured_by) from None


def make_jobs(
    context: Context,
    arrival: Arrival,
    run_id: str,
    prompts: Sequence[TokenIds],
    params: SamplingParams,
    n: int,
    names: Names,
) -> list[Job]:
    """Make `n` choices for each prompt, all checked before the first one runs. Raises RequestError.

    run_id: never used before; the engine's ids begin with it.
    """
    engine = context.engine
    if (tenant := tenant_of_request()) is not None:
        params = replace(params, service=replace(params.service, tenant=tenant))
    if not engine.config.share_prefixes and (salt := salt_of_request(params.cache_salt)) != params.cache_salt:
        params = replace(params, cache_salt=salt)
    resolved = [_validate(engine, prompt, params, names) for prompt in prompts]
    lengths = (len(prompt) + (settled.max_tokens or 0) for prompt, settled in zip(prompts, resolved, strict=True))
    charge_tokens(n * sum(lengths))
    jobs: list[Job] = []
    for prompt, settled in zip(prompts, resolved, strict=True):
        siblings = arrival.siblings(n)
        for choice in range(n):
            # Choices of one prompt with the same seed would be the same text: each has its own, as in vLLM.
            own = settled if settled.seed is None else replace(settled, seed=as_seed(settled.seed + choice))
            index = len(jobs)
            jobs.append(Job(index, prompt, own, f"{run_id}-{index}", arrival.request(siblings, own.max_tokens)))
    return jobs


def _validate(engine: EngineClient, prompt: TokenIds, params: SamplingParams, names: Names) -> SamplingParams:
    """The engine's check, in the client's own words."""
    try:
        return engine.validate(prompt, params)
    except RequestError as error:
        if error.param == "prompt":
            error.param = names.prompt
        elif error.param == "max_tokens" != names.max_tokens:
            said = str(error).replace("max_tokens", names.max_tokens)
            raise RequestError(said, param=names.max_tokens, code=error.code) from None
        raise


async def collect(context: Context, arrival: Arrival, jobs: Sequence[Job], usage: UsageCount) -> list[Text]:
    """Return the whole texts, in the jobs' order."""
    texts = [Text() for _ in jobs]
    async with aclosing(run(context, arrival, jobs)) as outputs:
        async for job, output in outputs:
            usage.add(job, output)
            texts[job.index].add(output)
    return texts


async def run(
    context: Context, arrival: Arrival, jobs: Sequence[Job]
) -> AsyncGenerator[tuple[Job, RequestOutput], None]:
    """Yield the outputs of all jobs as they come. An error of one ends all; closing this aborts all."""
    try:
        async with aclosing(_outputs(context, jobs)) as outputs:
            async for output in outputs:
                yield output
    except BaseException as error:
        arrival.end(ending(error))
        raise
    arrival.end("error")  # nothing, for all have ended


async def _outputs(context: Context, jobs: Sequence[Job]) -> AsyncGenerator[tuple[Job, RequestOutput], None]:
    """So many at once that one call does not fill the queue; the others follow as these end.

    Whether it is too late for a call is asked of those that it begins with: what some have cost is not thrown away.
    """
    if len(jobs) == 1:
        async with aclosing(_run_one(context, jobs[0])) as outputs:
            async for output in outputs:
                yield jobs[0], output
        return
    arrived: asyncio.Queue[tuple[Job, RequestOutput] | Exception | None] = asyncio.Queue()
    at_once = choices_at_once(context.engine)
    waiting = iter([*jobs[:at_once], *map(_however_late, jobs[at_once:])])
    pumps = [asyncio.create_task(_pump(context, waiting, arrived)) for _ in jobs[:at_once]]
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


def _however_late(job: Job) -> Job:
    service = replace(job.params.service, if_late="serve")
    return replace(job, params=replace(job.params, service=service))


async def _pump(
    context: Context, jobs: Iterator[Job], arrived: asyncio.Queue[tuple[Job, RequestOutput] | Exception | None]
) -> None:
    """One job after the other; other pumps take from the same."""
    try:
        for job in jobs:
            async with aclosing(_run_one(context, job)) as outputs:
                async for output in outputs:
                    arrived.put_nowait((job, output))
        arrived.put_nowait(None)
    except Exception as error:
        arrived.put_nowait(error)


async def _run_one(context: Context, job: Job) -> AsyncGenerator[RequestOutput, None]:
    """One job's outputs, measured. An answer that the server cut short is an error, not a finish reason."""
    engine = context.engine
    # EngineClient promises an iterator that can be closed; typing has only AsyncGenerator for that.
    outputs = cast(
        AsyncGenerator[RequestOutput, None], engine.generate(job.prompt_token_ids, job.params, job.request_id)
    )
    try:
        async for output in outputs:
            job.metrics.observe(output)
            if output.finish_reason == "abort":
                break
            yield output
            if output.finished:
                return
    finally:
        await outputs.aclose()
    if engine.draining:
        raise EngineDrainingError("the server shut down before the answer was complete")
    raise EngineDeadError(f"the answer was cut short: {engine.error or 'the engine aborted the request'}")
