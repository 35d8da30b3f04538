"""A stand-in engine for protocol tests: one character is one token, and the test decides when tokens come."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from longspan.config import EngineConfig
from longspan.core.events import FinishReason, RequestArrived
from longspan.core.progress import Progress
from longspan.engine.chat_format import ChatFormat
from longspan.engine.fleet import Purpose
from longspan.engine.observer.messages import Frames
from longspan.errors import EngineDeadError, EngineDrainingError, LongspanError, RequestError
from longspan.executor.base import InstanceReport, InstanceState
from longspan.metrics.ended_request import EndedRequest
from longspan.metrics.fleet import Fleet
from longspan.metrics.fleet.frames import About
from longspan.metrics.fleet.watched import Watched
from longspan.metrics.story import Story
from longspan.outputs import EngineStats, PositionLogprobs, Quote, RequestOutput, RequestTimes, TokenLogprob
from longspan.sampling_params import SamplingParams

MODEL = "fake-model"
NO_TEXT_YET = "\0"  # in an answer: a token that gives no text


class FakeTokenizer:
    eos_token_ids = (256,)
    max_token_chars = 1
    may_shrink = False
    chat_format = ChatFormat.of(None)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        try:
            return list(text.encode())
        except UnicodeEncodeError:
            raise RequestError("the text is not valid Unicode", param="prompt", code="invalid_unicode") from None

    def token(self, token_id: int) -> str | None:
        return chr(token_id) if token_id < 256 else None

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        ids = token_ids
        return bytes(token for token in ids if token < 256).decode(errors="replace")

    def info(self) -> dict[str, str | None]:
        none = dict.fromkeys(("bos_token", "pad_token", "unk_token"))
        return {"tokenizer_class": "Fake", "chat_template": "{{ messages }}", "eos_token": "<eos>", **none}

    def render_chat(self, messages: Sequence[Mapping[str, Any]], /, **kwargs: Any) -> str:
        extra = "".join(f"<{key}={value}>" for key, value in kwargs.items())
        return extra + "".join(f"<{m['role']}>{m['content']}" for m in messages)


@dataclass
class FakePromptLogprobs:
    """The log-probabilities that every token of this prompt has."""

    prompt: list[int]
    top: int

    def __len__(self) -> int:
        return len(self.prompt)

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id % 256])

    def positions(self) -> Iterator[tuple[int, PositionLogprobs | None]]:
        for number, token in enumerate(self.prompt):
            found = position_logprobs(chr(token % 256), self.top, number)
            yield token, found if number else None


@dataclass
class FakeView:
    """`View` of a fleet that is kept in the same process; the test tells it what happens, on a thread of its own."""

    watched: Watched
    lock: threading.Lock

    def catch_up(self) -> int:
        return 0

    async def remember(self) -> None:
        """Nothing was before."""

    async def frames(self, about: About | None, state: str | None) -> Frames:
        if self.watched.failed:
            return Frames(is_over=True)
        with self.lock:
            changes, whole = self.watched.frame(time.monotonic(), about, state)
        return Frames(changes=changes, whole=whole, is_empty=not self.watched.fleet.lives)


@dataclass
class FakeEngine:
    """Answers every prompt with `answer`, token by token, as long as `gate` is open.

    refuse: raised instead of admitting.
    fail_after: (tokens, error, prompt), raised after so many tokens if this is the prompt, or None.
    hold_after: tokens after which the gate closes by itself.
    cut_after: tokens after which a request ends with finish reason abort.
    stop_reason: the stop string that ended it, where none was cut off.
    told: how far every request is. watched: while somebody looks on, what is kept up to date for them.
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
        self.missing: dict[int, str] = {}
        self.left: list[tuple[int, Purpose]] = []
        self.added = 0
        self.courses: dict[int, list[InstanceReport]] = {}  # how one that is asked for is, look by look
        self.draining = False
        self.prompts: dict[str, list[int]] = {}
        self.params: dict[str, SamplingParams] = {}
        self.running: set[str] = set()
        self.stop_reason: str | None = None
        self.told: Progress | None = None
        self.watched: list[Watched] = []
        self.watched_lock = threading.Lock()
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

    def arrive(self, event: RequestArrived) -> None:
        """Have those who look on see that a request has come."""
        with self.watched_lock:
            self.watched[0].read(time.monotonic(), event, (), ())

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

    async def prepare(self, params: SamplingParams) -> None:
        """Any grammar will do."""

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
            of_prompt = None
            if number == 0 and params.prompt_logprobs is not None:
                of_prompt = FakePromptLogprobs(self.prompts[request_id], params.prompt_logprobs)
            yield RequestOutput(
                prompt_logprobs=of_prompt,
                request_id=request_id,
                num_prompt_tokens=num_prompt_tokens,
                num_output_tokens=number + 1,
                token_ids=(ord(letter) % 256,),
                text=text,
                logprobs=logprobs,
                finish_reason=reason,
                stop_reason=self.stop_reason if reason == "stop" else None,
                times=times,
            )

    def _fail_if_told(self, number: int, prompt: str) -> None:
        if self.fail_after is not None:
            tokens, error, only_prompt = self.fail_after
            if number == tokens and only_prompt in (None, prompt):
                raise error

    def progress(self, request_id: str) -> Progress | None:
        return self.told if request_id in self.running else None

    def has(self, request_id: str) -> bool:
        return request_id in self.running

    def quote(self, request_id: str) -> Quote | None:
        if request_id not in self.running or self.told is None or self.told.estimate is None:
            return None
        median_s, quote_s = self.told.estimate.median_s, self.told.estimate.quote_s
        return Quote(median_s, quote_s, promised_s=quote_s, deadline_s=quote_s, tpot_s=1.0)

    def on_ended(self, listener: Callable[[EndedRequest], None]) -> None:
        """Nobody is told."""

    async def stories(self, given: str, most: int) -> list[Story]:
        return []

    @contextmanager
    def watching(self) -> Iterator[FakeView]:
        self.watched.append(Watched(Fleet(2), time.time() - time.monotonic()))
        try:
            yield FakeView(self.watched[-1], self.watched_lock)
        finally:
            self.watched.pop()

    def abort(self, request_id: str) -> None:
        raise AssertionError("the server closes iterators instead")

    def instances(self) -> list[InstanceReport]:
        return [self._report(instance) for instance in range(2 + self.added)]

    def _report(self, instance: int) -> InstanceReport:
        """One that leaves is there at once where it was to be."""
        purposes = [purpose for left, purpose in self.left if left == instance]
        state: InstanceState = "starting" if instance in self.missing else "serving"
        if purposes:
            ends: dict[Purpose, InstanceState] = {"drain": "drained", "remove": "removed", "restart": state}
            state = ends[purposes[-1]]
        if (purposes or instance > 1) and (course := self.courses.get(instance)):
            return course.pop(0) if len(course) > 1 else course[0]
        why = self.missing.get(instance, "")
        return InstanceReport(instance, state, why, purposes.count("restart"), (100 + instance,))

    def leave(self, instance: int, purpose: Purpose) -> None:
        if instance > 1:
            raise RequestError(f"there is no instance {instance}; there are 0 to 1", param="instance")
        self.left.append((instance, purpose))

    def add_instance(self) -> int:
        self.added += 1
        return 1 + self.added

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
            kv_tokens_cached_by_instance=(30, 0) if alive else (0, 0),
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
