"""How far a request is, as the books have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from longspan.core.books.request import Request, RequestStatus
from longspan.core.estimate import Estimate

Phase = Literal["waiting", "prefill", "decode"]


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a request stands.

    place: 1 is the next one; None once it has begun. By what the policy expects, where that predicts; else by arrival.
    num_computed_tokens: of the prompt, that have KV, found or computed. num_cached_tokens: of those, how many were
    found; while it waits, how many it would find. waited_s: seconds since its arrival. estimate: None once it has a
    token, and of policies that do not predict.
    """

    phase: Phase
    place: int | None
    num_prompt_tokens: int
    num_computed_tokens: int
    num_cached_tokens: int
    waited_s: float
    estimate: Estimate | None


def progress_of(request: Request, place: int | None, estimate: Estimate | None, now: float) -> Progress:
    """Return it for a request that is alive. place: in the queue, 1 being the first; None: it is not there."""
    if place is not None:
        phase: Phase = "waiting"
        if estimate is not None and estimate.ahead is not None:
            place = estimate.ahead + 1
    else:
        begins = request.num_output_tokens == 0 or request.status is RequestStatus.PREFILLING
        phase = "prefill" if begins else "decode"
    computed = min(request.num_computed, request.num_prompt_tokens)
    return Progress(
        phase, place, request.num_prompt_tokens, computed, request.num_cached, now - request.arrived, estimate
    )
