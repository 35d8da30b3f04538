"""A request as the engine knows it: its tokens, its text, and what waits for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from longspan.core.events import FinishReason
from longspan.engine.detokenizer import OutputProcessor
from longspan.errors import LongspanError
from longspan.outputs import PositionLogprobs, RequestOutput, RequestTimes
from longspan.sampling_params import SamplingParams
from longspan.worker.sampling_state import SamplingState

Sink = Callable[[RequestOutput | LongspanError], None]
"""Takes each piece of a request's output; an error, if one comes, is the last."""


@dataclass(slots=True)
class EngineRequest:
    """A request and what it has so far.

    seed: the user's, or one that the engine drew. emitter: the instance that has its sampling state.
    """

    request_id: str
    prompt_token_ids: np.ndarray
    params: SamplingParams
    seed: int
    processor: OutputProcessor
    times: RequestTimes
    sink: Sink
    output_token_ids: list[int] = field(default_factory=list)
    emitter: int | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens that are known so far, prompt and output."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    def token_bytes(self, start: int, end: int) -> bytes | None:
        """Return tokens [start, end) as little-endian int32; None where the last of them is not sampled yet."""
        if end > self.num_tokens:
            return None
        prompt = len(self.prompt_token_ids)
        head = self.prompt_token_ids[start : min(end, prompt)]
        tail = self.output_token_ids[max(0, start - prompt) : max(0, end - prompt)]
        return head.tobytes() + np.array(tail, dtype="<i4").tobytes()

    def sampling_state(self) -> SamplingState:
        """Return how to go on sampling from here."""
        return SamplingState.start(self.params, self.seed, self.prompt_token_ids, self.output_token_ids)

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
            token_ids=token_ids,
            text=text,
            logprobs=logprobs,
            finish_reason=finish_reason,
            stop_reason=stop_reason,
            times=replace(self.times),  # as of now: it goes on
        )
