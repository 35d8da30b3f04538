"""Offline generation: the engine behind plain function calls."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Coroutine, Iterable, Mapping, Sequence, Set
from concurrent.futures import CancelledError, Future
from contextlib import nullcontext
from dataclasses import fields, replace
from numbers import Integral
from types import TracebackType
from typing import Any, Self, TypeVar

from rich.console import Console
from rich.progress import Progress

from longspan.config import DEFAULT_MODEL, EngineConfig
from longspan.core.policies import told_of_moved
from longspan.core.policies.base import Policy, check_policy
from longspan.engine.assembly import start_engine
from longspan.engine.grammars import MAX_WAITING
from longspan.engine.phase_display import shown_phases
from longspan.errors import ConfigError, EngineDeadError, RequestError
from longspan.outputs import Completion, EngineStats, PositionLogprobs, PromptPositions
from longspan.phases import OnPhase
from longspan.sampling_params import SamplingParams

T = TypeVar("T")
Prompt = str | Sequence[int]

_CLOSED = "the engine was closed"


class LLM:
    """A model on elastic instances, in this program. Also a context manager; `close` ends the workers.

    Threads may share one. A call that is interrupted (Ctrl-C) takes its requests with it. After `close`, and after the
    engine has died, every call raises EngineDeadError.

    settings: the fields of `EngineConfig`. policy: a name, with options as in "medha:max_space_share=0.3", or an
    object: one of ours, or your own (docs/add_a_policy.md). on_phase: hears how far the start is; without one, a
    terminal shows it.

    Example:
        if __name__ == "__main__":  # workers are processes of their own
            with LLM("smollm2-135m", instances=2) as llm:
                print(llm.generate(["The capital of France is"], SamplingParams(max_tokens=8))[0].text)
    """

    def __init__(
        self, model: str | os.PathLike[str] = DEFAULT_MODEL, *, policy: str | Policy | None = None,
        on_phase: OnPhase | None = None, **settings: Any,
    ) -> None:  # fmt: skip
        known = {f.name for f in fields(EngineConfig)}
        if unknown := sorted(set(settings) - known):
            for moved in filter(None, map(told_of_moved, unknown)):
                raise ConfigError(moved)
            raise ConfigError(f"unknown settings {', '.join(unknown)}; there are {', '.join(sorted(known))}")
        if isinstance(policy, str):
            settings["policy"], policy = policy, None
        if policy is not None:
            check_policy(policy)
        config = EngineConfig(model=os.fspath(model), **settings)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine", daemon=True)
        self._thread.start()
        self._ids = 0
        self._room = asyncio.Semaphore(config.max_waiting)  # of all threads' calls together
        self._room_to_try = asyncio.Semaphore(MAX_WAITING)  # of grammars, which may be more than are kept
        self._submitting, self._ending = threading.Lock(), threading.RLock()
        self._closed = False
        try:
            with nullcontext(on_phase) if on_phase else shown_phases(say=None) as told:
                self.engine = self._call(start_engine(config, policy, told))
        except BaseException:
            self._stop_loop()
            raise

    def generate(
        self,
        prompts: Prompt | Iterable[Prompt],
        params: SamplingParams | Iterable[SamplingParams] | None = None,
    ) -> list[Completion]:
        """Return one completion for each prompt (text or token ids), in order.

        They are served however late, unless their service level says `if_late="refuse"`: nobody would come again for
        them. Raises RequestError before anything runs, if a prompt or setting cannot be served.
        """
        texts = _as_list(prompts)
        settings = [_patient(one) for one in _one_each(params, len(texts))]
        token_ids = [self.engine.tokenizer.encode(text) if isinstance(text, str) else list(text) for text in texts]
        resolved = [self.engine.validate(ids, p) for ids, p in zip(token_ids, settings, strict=True)]
        self._call(self._prepare(resolved))
        return self._call(self._generate_all(texts, token_ids, resolved))

    def chat(
        self, messages: list[dict[str, Any]], params: SamplingParams | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Completion:  # fmt: skip
        """Return the model's answer to a conversation, through its own chat template.

        tools: that the model is told of, as OpenAI's API has them; calls are in the text, as the model writes them.
        """
        return self.generate([self.engine.tokenizer.apply_chat_template(messages, tools=tools)], params)[0]

    def wait_idle(self) -> None:
        """Wait until nothing of any request is left on the instances."""
        self._call(self.engine.idle())

    def stats(self) -> EngineStats:
        """Return what the engine does right now."""

        async def read() -> EngineStats:
            return self.engine.stats()

        return self._call(read())

    def close(self) -> None:
        """End the workers. May be called twice, and while other threads wait for answers, which fail."""
        with self._ending:
            with self._submitting:
                self._closed = True
            if self._thread.is_alive():
                asyncio.run_coroutine_threadsafe(self.engine.close(), self._loop).result()
                self._stop_loop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def _prepare(self, params: list[SamplingParams]) -> None:
        for one in dict.fromkeys(p.structured_outputs for p in params):
            await self.engine.prepare(SamplingParams(structured_outputs=one))

    async def _generate_all(
        self, prompts: list[Prompt], token_ids: list[list[int]], params: list[SamplingParams]
    ) -> list[Completion]:
        with Progress(console=Console(stderr=True), disable=len(prompts) < 2 or not sys.stderr.isatty()) as bar:
            task = bar.add_task("prompts", total=len(prompts))

            async def one(prompt: Prompt, ids: list[int], p: SamplingParams) -> Completion:
                async with self._room:
                    completion = await self._complete(prompt, ids, p)
                bar.advance(task)
                return completion

            tasks = [asyncio.create_task(one(*each)) for each in zip(prompts, token_ids, params, strict=True)]
            try:
                return await asyncio.gather(*tasks)
            finally:
                for left in tasks:  # none, unless one failed
                    left.cancel()

    async def _complete(self, prompt: Prompt, token_ids: list[int], params: SamplingParams) -> Completion:
        async with self._room_to_try:
            await self.engine.prepare(params)
        self._ids += 1
        out_ids: list[int] = []
        text: list[str] = []
        logprobs: list[PositionLogprobs] = []
        of_prompt: PromptPositions | None = None
        async for output in self.engine.generate(token_ids, params, f"llm-{self._ids}"):
            out_ids += output.token_ids
            text.append(output.text)
            logprobs += output.logprobs or ()
            of_prompt = output.prompt_logprobs or of_prompt
        assert output.finish_reason is not None
        return Completion(
            request_id=output.request_id,
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_token_ids=tuple(token_ids),
            token_ids=tuple(out_ids),
            text="".join(text),
            finish_reason=output.finish_reason,
            stop_reason=output.stop_reason,
            logprobs=tuple(logprobs) if params.logprobs is not None else None,
            times=output.times,
            prompt_logprobs=None if of_prompt is None else tuple(each for _, each in of_prompt.positions()),
            num_cached_tokens=output.num_cached_tokens,
        )

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        with self._submitting:  # nothing comes behind what `close` asks for: nobody would answer it
            if self._closed:
                work.close()
                raise EngineDeadError(_CLOSED)
            future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except CancelledError:
            raise EngineDeadError(_CLOSED) from None
        except BaseException:
            future.cancel()  # nothing, unless Ctrl-C came while it ran
            raise

    def _stop_loop(self) -> None:
        """What still runs there is cancelled and ends first: a start that was interrupted ends its workers."""
        asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _as_list(prompts: Prompt | Iterable[Prompt]) -> list[Prompt]:
    """One prompt, given alone, is a list of one. (The types do not tell token ids from prompts; the values do.)"""
    if isinstance(prompts, str):
        return [prompts]
    if not _is_sequence(prompts):
        raise _no_prompt("prompts are", prompts, "texts, lists of token ids")
    several: list[Any] = list(prompts)
    if several and isinstance(several[0], Integral):
        return [several]
    for number, prompt in enumerate(several):
        if not (isinstance(prompt, str) or _is_sequence(prompt)):
            raise _no_prompt(f"prompt {number} is", prompt, "a text or a list of token ids")
    return several


def _is_sequence(value: object) -> bool:
    """Generators and arrays are; what has no order, or is bytes of a text in some encoding, is not."""
    return isinstance(value, Iterable) and not isinstance(value, bytes | bytearray | Mapping | Set)


def _no_prompt(what: str, value: object, wanted: str) -> RequestError:
    return RequestError(f"{what} of type {type(value).__name__}; give {wanted}", param="prompt", code="invalid_type")


def _patient(params: SamplingParams) -> SamplingParams:
    """Return the same params; where they do not say, they ask to be served late rather than not at all."""
    if params.service.if_late is not None:
        return params
    return replace(params, service=replace(params.service, if_late="serve"))


def _one_each(params: SamplingParams | Iterable[SamplingParams] | None, count: int) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    settings: list[Any] = list(params) if _is_sequence(params) else [params]
    for one in settings:
        if not isinstance(one, SamplingParams):
            raise ConfigError(f"params are SamplingParams, or one of them for each prompt, not {type(one).__name__}")
    if len(settings) != count:
        raise ConfigError(f"{count} prompts, but {len(settings)} sampling params")
    return settings
