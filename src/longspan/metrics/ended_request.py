"""What there is to tell of a request that has ended, to who looks on: never its text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from longspan.core.events import FinishReason
from longspan.metrics.elasticity import Happening
from longspan.outputs import RequestTimes
from longspan.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class EndedRequest:
    """One request, from its arrival to its end.

    times: `finished` is always there. happenings: its first pauses, preemptions and scalings. finish_reason: None where
    it has no answer, for an error; error: that one's kind. trace: what its client said of its trace.
    """

    request_id: str
    params: SamplingParams
    times: RequestTimes
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    num_preemptions: int
    happenings: tuple[Happening, ...]
    finish_reason: FinishReason | None
    error: str | None
    trace: Mapping[str, str] | None
