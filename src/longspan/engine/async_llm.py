"""The engine on an event loop: what servers use."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from longspan.config import EngineConfig
from longspan.core.estimate import Estimate
from longspan.core.progress import Progress
from longspan.engine.detokenizer import OutputProcessor
from longspan.engine.engine_core import EngineCore
from longspan.engine.fleet import Purpose
from longspan.engine.grammars import Grammars
from longspan.engine.lateness_log import LatenessLog
from longspan.engine.prefixes import KnownTokens, PrefixKeys
from longspan.engine.prompt_logprobs import PromptLogprobs
from longspan.engine.protocol import TokenIds, View
from longspan.engine.request import EngineRequest
from longspan.engine.tokenizer import Tokenizer
from longspan.engine.watching import watching
from longspan.errors import (
    EngineDeadError,
    EngineDrainingError,
    LongspanError,
    RequestError,
)
from longspan.executor.base import Executor, InstanceReport
from longspan.metrics.ended_request import EndedRequest
from longspan.metrics.story import Story
from longspan.outputs import EngineStats, Quote, RequestOutput, RequestTimes
from longspan.sampling_params import MAX_PROMPT_LOGPROBS, SamplingParams
from longspan.sib import Deployment
from longspan.trace_context import trace_context

logger = logging.getLogger(__name__)

_WATCH_S = 1.0  # how often the watchdog is asked


class AsyncLLM:
    """One engine, which `assembly.start_engine` makes: `generate` from it, `close` it; all on one event loop."""

    def __init__(
        self, config: EngineConfig, model_name: str, max_model_len: int, vocab_size: int, tokenizer: Tokenizer,
        core: EngineCore, executor: Executor, deployment: Deployment, grammars: Grammars,
        prefix_keys: PrefixKeys | None = None,
    ) -> None:  # fmt: skip
        """prefix_keys: makes those of prompts; None: no KV is found again."""
        self.config = config
        self.model_name = model_name
        self.max_model_len = max_model_len
        self.vocab_size = vocab_size
        self.fingerprint = ""
        self.default_sampling: Mapping[str, float] = {}
        self.tokenizer = tokenizer
        self.core = core
        self.executor = executor
        self.deployment = deployment
        self.grammars = grammars
        self._prefix_keys = prefix_keys
        self.draining = False
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        core.on_idle = self._idle.set
        self._dead = asyncio.Event()
        core.on_dead = self._dead.set
        self._watching: asyncio.Task[None] | None = None

    # -- requests -------------------------------------------------------------------------------------------------

    def validate(self, prompt_token_ids: TokenIds, params: SamplingParams) -> SamplingParams:
        """Return the same params with `max_tokens` resolved. Raises RequestError if the request can never run.

        An array of integers is checked in a moment; to make one of a very long list is for another thread to do.
        """
        length = len(prompt_token_ids)
        if length == 0:
            raise RequestError("the prompt is empty; give it at least one token", param="prompt", code="invalid_value")
        limit, name = min(
            (self.max_model_len, "the model's maximum context length"),
            (self.core.scheduler.request_limit, self.room),
        )
        if length >= limit:
            raise RequestError(
                f"the prompt has {length} tokens, but {name} is {limit} tokens, one of them at least for the "
                f"output; shorten the prompt",
                param="prompt", code="context_length_exceeded",
            )  # fmt: skip
        if params.prompt_logprobs is not None and length * (params.prompt_logprobs + 1) > MAX_PROMPT_LOGPROBS:
            raise RequestError(
                f"prompt_logprobs of {params.prompt_logprobs} for {length} tokens are {length} x "
                f"{params.prompt_logprobs + 1} log-probabilities, but at most {MAX_PROMPT_LOGPROBS} are given; ask for "
                "fewer",
                param="prompt_logprobs", code="invalid_value",
            )  # fmt: skip
        max_tokens = params.max_tokens or limit - length
        if params.min_tokens > max_tokens:
            raise RequestError(
                f"min_tokens is {params.min_tokens}, but there is room for {max_tokens} only", param="min_tokens",
                code="invalid_value",
            )  # fmt: skip
        for token, _ in params.logit_bias:
            if token >= self.vocab_size:
                raise RequestError(
                    f"logit_bias names token id {token}, but the model knows only those from 0 to "
                    f"{self.vocab_size - 1}",
                    param="logit_bias", code="invalid_value",
                )  # fmt: skip
        if length + max_tokens > limit:
            raise RequestError(
                f"{length} prompt tokens and max_tokens of {max_tokens} make {length + max_tokens}, but {name} "
                f"is {limit} tokens; shorten the prompt or lower max_tokens to {limit - length}",
                param="max_tokens", code="context_length_exceeded",
            )  # fmt: skip
        self._check_vocabulary(prompt_token_ids)
        return replace(params, max_tokens=max_tokens)

    def _check_vocabulary(self, prompt_token_ids: TokenIds) -> None:
        """The model has a row for each token id; the tokenizer may know more of them, or fewer."""
        ids = np.asarray(prompt_token_ids)
        if ids.ndim != 1 or ids.dtype.kind not in "iuO":  # whole numbers beyond 64 bits make objects
            raise RequestError(
                "the prompt holds token ids that are no whole numbers", param="prompt", code="invalid_type"
            )
        lowest, highest = ids.min(), ids.max()
        if lowest >= 0 and highest < self.vocab_size:
            return
        wrong = int(lowest if lowest < 0 else highest)
        text = self.tokenizer.token(wrong)
        raise RequestError(
            f"the prompt holds token id {wrong}{f' ({text!r})' if text else ''}, but the model knows only those from "
            f"0 to {self.vocab_size - 1}",
            param="prompt", code="invalid_value",
        )  # fmt: skip

    async def prepare(self, params: SamplingParams) -> None:
        """Try out the grammar that the params ask for, if any. Raises RequestError, QueueFullError."""
        await self._grammar(params)

    async def _grammar(self, params: SamplingParams) -> str | None:
        wanted = params.structured_outputs
        return None if wanted is None else await self.grammars.compiled(wanted)

    async def generate(
        self, prompt_token_ids: TokenIds, params: SamplingParams, request_id: str
    ) -> AsyncIterator[RequestOutput]:
        """Yield deltas, the last one with a finish reason. Closing the iterator aborts the request and frees its KV.

        Raises:
            RequestError, QueueFullError, OverloadedError, EngineDrainingError, EngineDeadError: on the first step or
                later.
        """
        queue: asyncio.Queue[RequestOutput | LongspanError] = asyncio.Queue()
        params = self.validate(prompt_token_ids, params)
        grammar = await self._grammar(params)
        prompt = np.asarray(prompt_token_ids, dtype="<i4")
        keys = None if self._prefix_keys is None else await self._prefix_keys.of_prompt(prompt, params)
        request = self._admit(prompt, params, request_id, queue, grammar, keys)
        try:
            while True:
                item = await queue.get()
                if isinstance(item, LongspanError):
                    raise item
                yield item
                if item.finished:
                    return
        finally:
            self.core.abort(request)  # nothing, if it has ended

    def _admit(
        self, prompt: NDArray[np.int32], params: SamplingParams, request_id: str,
        queue: asyncio.Queue[RequestOutput | LongspanError], grammar: str | None, keys: KnownTokens | None,
    ) -> EngineRequest:  # fmt: skip
        if self.core.error is not None:
            raise EngineDeadError(self.core.error)
        if self.draining:
            raise EngineDrainingError("the server is shutting down and takes no new requests")
        detokenizer = self.core.detokenizer if params.skip_special_tokens else self.core.detokenizer.with_special
        processor = OutputProcessor(detokenizer, prompt, params, self.tokenizer.eos_token_ids)
        seed = secrets.randbits(63) if params.seed is None else params.seed
        times = RequestTimes(arrived=self.core.clock())
        request = EngineRequest(request_id, prompt, params, seed, processor, times, queue.put_nowait, grammar, keys)
        request.trace = trace_context.get()
        if params.prompt_logprobs is not None:
            request.prompt_logprobs = PromptLogprobs(prompt, params.prompt_logprobs, self.core.detokenizer)
        was_idle = self._idle.is_set()
        self._idle.clear()  # now, for to add it may end it
        try:
            self.core.add(request)
        except LongspanError:
            if was_idle:
                self._idle.set()
            raise
        return request

    def abort(self, request_id: str) -> None:
        """End a request; its stream ends with finish reason "abort". Unknown ids are ignored."""
        request = self.core.requests.get(request_id)
        if request is not None:
            self.core.abort(request)

    def estimate(self, request_id: str) -> Estimate | None:
        """Return when the request gets its first token, in seconds from its arrival.

        None: it has it, or has ended, or is unknown; or the policy does not predict.
        """
        return self.core.estimate(request_id)

    def progress(self, request_id: str) -> Progress | None:
        """Return how far a request is; None: it has ended, or is unknown."""
        return self.core.progress(request_id)

    def has(self, request_id: str) -> bool:
        """Tell whether the engine has taken it in, has not refused it, and it has not ended."""
        return request_id in self.core.requests

    def quote(self, request_id: str) -> Quote | None:
        """Return what was predicted at a request's arrival; None: nothing, or it has ended, or is unknown."""
        request = self.core.requests.get(request_id)
        return None if request is None else request.quote

    def on_ended(self, listener: Callable[[EndedRequest], None]) -> None:
        """Have it hear of each request that ends, however it does."""
        self.core.on_ended = listener

    async def stories(self, given: str, most: int) -> list[Story]:
        """Tell what became of the request that has this id, of each of its choices, and why; others have their turns
        meanwhile. Nothing, if it is not remembered; `most` at most.

        given: an id that clients get, or the engine's own, or how one of them begins.
        """
        found: list[Story] = []
        for request_id in self.core.records.recent.find(given)[:most]:
            telling = self.core.records.recent.tell(request_id)
            while True:
                try:
                    next(telling)
                except StopIteration as told:
                    if told.value is not None:
                        found.append(told.value)
                    break
                await asyncio.sleep(0)
        return found

    def watching(self) -> AbstractContextManager[View]:
        """Keep a model of the fleet up to date meanwhile, for one who looks on. Raises OSError."""
        return watching(self.core)

    # -- state ----------------------------------------------------------------------------------------------------

    @property
    def total_kv_tokens(self) -> int:
        return self.core.scheduler.config.total_kv_tokens

    @property
    def request_limit(self) -> int:
        return min(self.max_model_len, self.core.scheduler.request_limit)

    @property
    def room(self) -> str:
        """The place where the KV of one request has to fit, in words, with a comma if a clause ends there."""
        policy = self.core.scheduler.policy
        if policy.keeps_on_one_instance and self.config.num_instances > 1:
            return f"what an instance holds, on which the policy {policy.name!r} keeps a request,"
        if self.core.scheduler.config.num_nodes > 1:
            return "the KV pool of one node's instances together"
        return "the KV pool of all instances together"

    @property
    def error(self) -> str | None:
        return self.core.error

    @property
    def stalled(self) -> str | None:
        """Why it seems that the engine is stuck; None while what was decided comes to its end."""
        return self.core.stalled()

    async def dead(self) -> str:
        """Wait until the engine has died; returns why. (It does not die of `close`.)"""
        await self._dead.wait()
        assert self.core.error is not None
        return self.core.error

    def watch(self) -> None:
        """Look out for stalls from now on, until the end."""
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        """Tell the log once of what stalls, and when it has gone on; and of overload."""
        told: str | None = None
        lateness = LatenessLog(self.core.clock)
        while True:
            await asyncio.sleep(_WATCH_S)
            self.core.records.flush()
            if self.core.scheduler.config.overload == "warn":
                lateness.tell(self.core.num_served_late)
            stalled = self.core.stalled()
            if stalled is not None and told is None:
                logger.error("the engine stalls: %s", stalled)
            elif stalled is None and told is not None:
                logger.warning("the engine goes on; before, it stalled: %s", told)
            told = stalled

    def instances(self) -> Sequence[InstanceReport]:
        """Tell how each instance is, in order."""
        return self.core.fleet.reports()

    def leave(self, instance: int, purpose: Purpose) -> None:
        """Empty an instance while its requests go on, and then do with it what is wanted.

        Raises EngineDeadError; or RequestError: it cannot leave.
        """
        self.core.leave(instance, purpose)

    def add_instance(self) -> int:
        """Have one instance more, and return its number. Raises EngineDeadError; or RequestError: it cannot be."""
        return self.core.add_instance()

    def stats(self) -> EngineStats:
        return self.core.stats()

    async def idle(self) -> None:
        """Wait until no request is left, and nothing of any on the instances."""
        await self._idle.wait()

    # -- the end --------------------------------------------------------------------------------------------------

    async def drain(self, timeout_s: float) -> None:
        """Refuse new requests, wait for the running ones, abort those left at the timeout."""
        self.draining = True
        try:
            await asyncio.wait_for(self.idle(), timeout_s)
        except TimeoutError:
            for request in list(self.core.requests.values()):
                self.core.abort(request)

    async def close(self) -> None:
        """End the workers; what still runs fails."""
        if self._closed:
            return
        self._closed = True
        if self._watching is not None:
            self._watching.cancel()
        self.core.on_dead = lambda: None
        self.core.fail("the engine was closed")
        await to_its_end(self.executor.close)
        await to_its_end(self.grammars.close)
        self.core.records.observation.end_views()
        await asyncio.to_thread(self.core.records.close)


async def to_its_end(work: Callable[[], None]) -> None:
    """Run it to its end in a thread, however often the caller is cancelled meanwhile: workers not ended would keep the
    process for ever."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    cancelled = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled
