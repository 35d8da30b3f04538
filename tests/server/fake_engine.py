"""A stand-in engine for protocol tests: one character is one token, and the test decides when tokens come."""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from longspan.config import EngineConfig
from longspan.core.events import FinishReason
from longspan.errors import EngineDeadError, EngineDrainingError, LongspanError, RequestError
from longspan.outputs import EngineStats, PositionLogprobs, RequestOutput, RequestTimes, TokenLogprob
from longspan.sampling_params import SamplingParams

MODEL = "fake-model"
NO_TEXT_YET = "\0"  # in an answer: a token that gives no text


class FakeTokenizer:
    eos_token_ids = (256,)
    max_token_chars = 1
    may_shrink = False

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        try:
            return list(text.encode())
        except UnicodeEncodeError:
            raise RequestError("the text is not valid Unicode", param="prompt", code="invalid_unicode") from None

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(token for token in ids if token < 256).decode(errors="replace")

    def render_chat(self, messages: Sequence[Mapping[str, Any]], /, **kwargs: Any) -> str:
        extra = "".join(f"<{key}={value}>" for key, value in kwargs.items())
        return extra + "".join(f"<{m['role']}>{m['content']}" for m in messages)


@dataclass
class FakeEngine:
    """Answers every prompt with `answer`, token by token, as long as `gate` is open.

    refuse: raised instead of admitting.
    fail_after: (tokens, error, prompt), raised after so many tokens if this is the prompt, or None.
    hold_after: tokens after which the gate closes by itself.
    cut_after: tokens after which a request ends with finish reason abort.
    prompts, params: what was admitted. tokens_sent, admitted, ended: for tests to wait on.
    """

    config: EngineConfig = field(default_factory=lambda: EngineConfig(model="fake/model", max_waiting=64))
    model_name: str = MODEL
    max_model_len: int = 512
    vocab_size: int = 257
    total_kv_tokens: int = 1024
    fingerprint: str = "fp_0123456789"

    def __post_init__(self) -> None:
        self.tokenizer = FakeTokenizer()
        self.default_sampling: Mapping[str, float] = {}
        self.gate = asyncio.Event()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.tokens_sent: queue.Queue[str] = queue.Queue()
        self.admitted: queue.Queue[str] = queue.Queue()
        self.ended: queue.Queue[tuple[str, str]] = queue.Queue()
        self.closed = False
        self.drain_started = asyncio.Event()
        self.died = asyncio.Event()
        self.reset()

    @classmethod
    async def start(cls, config: EngineConfig) -> FakeEngine:
        return cls(config)

    def reset(self) -> None:
        self.answer = "Hello world"
        self.refuse: LongspanError | None = None
        self.fail_after: tuple[int, Exception, str | None] | None = None
        self.cut_after: int | None = None
        self.hold_after: int | None = None
        self.error: str | None = None
        self.stalled: str | None = None
        self.draining = False
        self.prompts: dict[str, list[int]] = {}
        self.params: dict[str, SamplingParams] = {}
        self.running: set[str] = set()
        self.gate.set()
        for events in (self.tokens_sent, self.admitted, self.ended):
            while not events.empty():
                events.get_nowait()

    # -- for tests, from their own thread

    def hold(self) -> None:
        self.gate.clear()

    def release(self) -> None:
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self.gate.set)

    # -- EngineClient

    @property
    def request_limit(self) -> int:
        return self.max_model_len

    def validate(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> SamplingParams:
        length, limit = len(prompt_token_ids), self.max_model_len
        if length == 0:
            raise RequestError("the prompt is empty", param="prompt")
        if max(prompt_token_ids) >= self.vocab_size or min(prompt_token_ids) < 0:
            raise RequestError("the prompt holds token ids outside the vocabulary", param="prompt")
        if length >= limit:
            raise RequestError(
                f"the prompt has {length} tokens, but the limit is {limit}",
                param="prompt", code="context_length_exceeded",
            )  # fmt: skip
        if params.max_tokens is not None and length + params.max_tokens > limit:
            raise RequestError(
                f"{length} prompt tokens and max_tokens of {params.max_tokens} are more than {limit}",
                param="max_tokens", code="context_length_exceeded",
            )  # fmt: skip
        return replace(params, max_tokens=params.max_tokens or limit - length)

    async def generate(
        self, prompt_token_ids: Sequence[int], params: SamplingParams, request_id: str
    ) -> AsyncIterator[RequestOutput]:
        self.loop = asyncio.get_running_loop()
        if self.draining:
            raise EngineDrainingError("draining")
        if self.refuse is not None:
            raise self.refuse
        if request_id in self.running:
            raise RequestError(f"{request_id} is running already")
        self.running.add(request_id)
        self.prompts[request_id] = [int(token) for token in prompt_token_ids]
        self.params[request_id] = params
        self.admitted.put(request_id)
        how = "aborted"
        try:
            async for output in self._outputs(len(prompt_token_ids), params, request_id):
                yield output
                self.tokens_sent.put(request_id)
            how = "finished"
        except Exception:
            how = "failed"
            raise
        finally:
            self.running.discard(request_id)
            self.ended.put((request_id, how))

    async def _outputs(
        self, num_prompt_tokens: int, params: SamplingParams, request_id: str
    ) -> AsyncIterator[RequestOutput]:
        times = RequestTimes(arrived=time.monotonic(), scheduled=time.monotonic())
        assert params.max_tokens is not None
        length = params.max_tokens if params.ignore_eos else min(params.max_tokens, len(self.answer))
        sent = 0
        for number in range(length):
            if number == self.hold_after:
                self.gate.clear()
            await self.gate.wait()
            self._fail_if_told(number, self.tokenizer.decode(self.prompts[request_id]))
            now = time.monotonic()
            times = replace(times, first_token=times.first_token or now, last_token=now)
            letter = self.answer[number % len(self.answer)]
            reason: FinishReason | None = None
            if number == self.cut_after:
                reason = "abort"
            elif number == length - 1:
                reason = "stop" if not params.ignore_eos and length == len(self.answer) else "length"
            if reason is not None:
                times = replace(times, finished=now)
            text = "" if letter == NO_TEXT_YET else letter
            sent += len(text)
            logprobs = None
            if params.logprobs is not None:
                logprobs = (position_logprobs(letter, params.logprobs, sent - len(text)),)
            yield RequestOutput(
                request_id=request_id,
                num_prompt_tokens=num_prompt_tokens,
                num_output_tokens=number + 1,
                token_ids=(ord(letter) % 256,),
                text=text,
                logprobs=logprobs,
                finish_reason=reason,
                times=times,
            )

    def _fail_if_told(self, number: int, prompt: str) -> None:
        if self.fail_after is not None:
            tokens, error, only_prompt = self.fail_after
            if number == tokens and only_prompt in (None, prompt):
                raise error

    def abort(self, request_id: str) -> None:
        raise AssertionError("the server closes iterators instead")

    def stats(self) -> EngineStats:
        alive = self.error is None  # a dead engine runs nothing
        return EngineStats(
            num_running=len(self.running) if alive else 0,
            num_waiting=3 if alive else 0,
            kv_tokens_used=256 if alive else 0,
            kv_tokens_total=self.total_kv_tokens,
            num_instances=2,
            num_preemptions=5,
            kv_tokens_used_by_instance=(156, 100) if alive else (0, 0),
            num_migrations=4,
            num_bad_logits=6,
        )

    async def dead(self) -> str:
        await self.died.wait()
        assert self.error is not None
        return self.error

    async def drain(self, timeout_s: float) -> None:
        self.draining = True
        self.drain_started.set()
        while self.running:
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        self.closed = True

    def die(self, reason: str) -> None:
        self.error = reason
        self.died.set()
        self.refuse = EngineDeadError(reason)


def position_logprobs(letter: str, n: int, text_offset: int) -> PositionLogprobs:
    others = ["x", "y", "z", "u", "v"]
    top = [TokenLogprob(ord(letter), letter.encode(), -0.5, 1)]
    top += [TokenLogprob(ord(other), other.encode(), -1.0 - i, i + 2) for i, other in enumerate(others)]
    return PositionLogprobs(top[0], tuple(top[:n]), text_offset)
