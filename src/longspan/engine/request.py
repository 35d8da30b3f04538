"""A request as the engine knows it: its tokens, its text, and what waits for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from longspan.core.events import FinishReason
from longspan.engine.detokenizer import OutputProcessor
from longspan.engine.prefixes import KnownTokens
from longspan.engine.prompt_logprobs import PromptLogprobs
from longspan.errors import LongspanError
from longspan.log_fields import fields
from longspan.metrics.elasticity import Course
from longspan.metrics.ended_request import EndedRequest
from longspan.metrics.request_list import client_id
from longspan.outputs import PositionLogprobs, Quote, RequestOutput, RequestTimes
from longspan.sampling_params import SamplingParams
from longspan.worker.messages import Scoring
from longspan.worker.sampling_state import SamplingState

Sink = Callable[[RequestOutput | LongspanError], None]
"""Takes each piece of a request's output; an error, if one comes, is the last."""


@dataclass(slots=True)
class EngineRequest:
    """A request and what it has so far.

    seed: the user's, or one that the engine drew. grammar: of its output, tried out. known: by what its KV is found
    again; None: by nothing. num_cached_tokens: of its prompt, that were computed before. quote: what was predicted at
    its arrival. num_preemptions: how often its KV was dropped. emitter: the instance that has its sampling state.
    prompt_logprobs: as far as they have come, if they were asked for. computed_end: how far it was sent to be
    computed, at most. num_failures: workers that failed while they ran it. course: its instances and pauses so far.
    trace: what its client said of its trace.
    """

    request_id: str
    prompt_token_ids: np.ndarray
    params: SamplingParams
    seed: int
    processor: OutputProcessor
    times: RequestTimes
    sink: Sink
    grammar: str | None = None
    known: KnownTokens | None = None
    prompt_logprobs: PromptLogprobs | None = None
    output_token_ids: list[int] = field(default_factory=list)
    num_cached_tokens: int = 0
    quote: Quote | None = None
    num_preemptions: int = 0
    emitter: int | None = None
    computed_end: int = 0
    num_failures: int = 0
    course: Course = field(default_factory=Course)
    trace: Mapping[str, str] | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens that are known so far, prompt and output."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    def log_fields(self) -> dict[str, Mapping[str, object]]:
        """Return what a line of the log that concerns it has beside its message, as logging's `extra`."""
        return fields(request_id=client_id(self.request_id), engine_id=self.request_id)

    def token_bytes(self, start: int, end: int) -> bytes | None:
        """Return tokens [start, end) as little-endian int32; None where the last of them is not sampled yet."""
        if end > self.num_tokens:
            return None
        prompt = len(self.prompt_token_ids)
        head = self.prompt_token_ids[start : min(end, prompt)]
        tail = self.output_token_ids[max(0, start - prompt) : max(0, end - prompt)]
        return head.tobytes() + np.array(tail, dtype="<i4").tobytes()

    def note_computed(self, start: int, end: int) -> int:
        """Note that tokens [start, end) are sent to be computed; return how many of them were so before."""
        again = max(0, min(end, self.computed_end) - start)
        self.computed_end = max(self.computed_end, end)
        return again

    def scoring(self, start: int, end: int) -> Scoring | None:
        """Return what is wanted of tokens [start, end) of the prompt; None where that is nothing, or there already."""
        wanted = self.prompt_logprobs
        last = min(end + 1, len(self.prompt_token_ids))
        if wanted is None or start + 1 >= last or wanted.complete:
            return None
        return Scoring(self.prompt_token_ids[start + 1 : last].tobytes(), wanted.top)

    def keys_of(self, token_id: int) -> bytes:
        """Return the key of the block that the next token completes, if it does; to be asked token by token."""
        return b"" if self.known is None else self.known.hasher.push(token_id.to_bytes(4, "little"))

    def sampling_state(self) -> SamplingState:
        """Return how to go on sampling from here."""
        return SamplingState.start(
            replace(self.params, structured_outputs=None), self.seed, self.prompt_token_ids, self.output_token_ids,
            self.grammar, tuple(sorted(self.processor.end_token_ids)),
        )  # fmt: skip

    def ended(self, news: RequestOutput | LongspanError | None, now: float) -> EndedRequest:
        """Return what there is to tell of it at its end. news: the last that its reader is told; None: it cannot be."""
        times = replace(self.times)
        if times.finished is None:
            times.finished = now
        error = type(news).__name__ if isinstance(news, LongspanError) else None
        reason: FinishReason | None = None if error else "abort"
        if isinstance(news, RequestOutput):
            reason = news.finish_reason
        return EndedRequest(
            self.request_id, self.params, times, len(self.prompt_token_ids), self.num_cached_tokens,
            len(self.output_token_ids), self.num_preemptions, tuple(self.course.happenings), reason, error, self.trace,
        )  # fmt: skip

    def output(
        self,
        *,
        token_ids: tuple[int, ...] = (),
        text: str = "",
        logprobs: tuple[PositionLogprobs, ...] | None = None,
        finish_reason: FinishReason | None = None,
        stop_reason: str | int | None = None,
    ) -> RequestOutput:
        return RequestOutput(
            request_id=self.request_id,
            num_prompt_tokens=len(self.prompt_token_ids),
            num_output_tokens=len(self.output_token_ids),
            num_cached_tokens=self.num_cached_tokens,
            token_ids=token_ids,
            text=text,
            logprobs=logprobs,
            finish_reason=finish_reason,
            stop_reason=stop_reason,
            prompt_logprobs=self.prompt_logprobs if token_ids and len(self.output_token_ids) == 1 else None,
            times=replace(self.times),  # as of now: it goes on
            quote=self.quote,
            num_preemptions=self.num_preemptions,
        )
