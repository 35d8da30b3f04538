"""A request as the scheduler sees it: lengths and counts, never text or token values."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from longspan.core.actions import KVRange
from longspan.core.internal_error import InternalError
from longspan.service_level import DEFAULT_SERVICE, ServiceLevel

EndReason = Literal["finished", "aborted"]


class RequestStatus(Enum):
    WAITING = "waiting"
    """Holds no KV; stands in the queue. New, or preempted."""
    PREFILLING = "prefilling"
    """More than its last token still lacks KV: the prompt, or after a preemption also what was generated."""
    DECODING = "decoding"
    """Only its last token lacks KV."""
    MIGRATING = "migrating"
    """Some of its KV is on the way to another instance."""
    DRAINING = "draining"
    """It has ended, but a batch or a migration that was issued before still touches its KV."""
    ENDED = "ended"
    """Nothing refers to it any more."""


_S = RequestStatus
ALLOWED_TRANSITIONS: Mapping[RequestStatus, Set[RequestStatus]] = {
    _S.WAITING: {_S.PREFILLING, _S.ENDED},
    _S.PREFILLING: {_S.DECODING, _S.MIGRATING, _S.WAITING, _S.DRAINING, _S.ENDED},
    _S.DECODING: {_S.MIGRATING, _S.WAITING, _S.DRAINING, _S.ENDED},
    _S.MIGRATING: {_S.PREFILLING, _S.DECODING, _S.DRAINING},
    _S.DRAINING: {_S.ENDED},
    _S.ENDED: set(),
}


@dataclass(slots=True, eq=False)
class Request:
    """One request's books.

    A request with p prompt tokens and g generated ones needs the KV of p + g - 1 tokens before its last token
    can be run. So prefill, recompute and decode are the same thing: run what has no KV yet, get one token
    more.

    arrival_index: order of arrival; no two requests share one.
    num_computed: tokens whose KV is stored by completed batches.
    num_scheduled: tokens of batches issued and not completed; their slots are taken already.
    in_flight: batches issued and not completed.
    flowing: its newest chunk has left the first pipeline stage, and there are tokens for another.
    home, promised: the instance where its next KV will most likely go, and the free slots there that it may
        count on (kept by the ledger). None and 0 while it holds no KV, and once it has ended.
    reserved: where its next tokens will go, in token order from `num_stored` on; slots are set aside there, and
        no other request can take them. Empty unless the policy reserves.
    ready_order, prefills_seen: when it last became ready, counted in such moments and in prefill batches
        issued.
    """

    id: str
    num_prompt_tokens: int
    max_tokens: int
    arrived: float
    arrival_index: int
    service: ServiceLevel = DEFAULT_SERVICE
    status: RequestStatus = RequestStatus.WAITING
    num_output_tokens: int = 0
    num_computed: int = 0
    num_scheduled: int = 0
    in_flight: int = 0
    flowing: bool = False
    num_preemptions: int = 0
    home: int | None = None
    promised: int = 0
    reserved: tuple[KVRange, ...] = ()
    ready_order: int = 0
    prefills_seen: int = 0
    end_reason: EndReason | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens known so far: prompt and output."""
        return self.num_prompt_tokens + self.num_output_tokens

    @property
    def num_stored(self) -> int:
        """Tokens that have a KV slot; the next segment starts here."""
        return self.num_computed + self.num_scheduled

    @property
    def missing(self) -> tuple[tuple[int, int], ...]:
        """[start, end) of the tokens known so far that have no KV slot: they are computed next, in order.

        Today these are the last ones. Where a request can lose KV, or adopt some, there will be ranges before them.
        """
        return ((self.num_stored, self.num_tokens),) if self.tokens_to_compute else ()

    @property
    def tokens_to_compute(self) -> int:
        """Tokens known so far that are missing."""
        return self.num_prompt_tokens + self.num_output_tokens - self.num_computed - self.num_scheduled

    @property
    def slots_to_take(self) -> int:
        """KV slots that the tokens known so far still have to find. Those that are missing find theirs as they run."""
        return self.tokens_to_compute

    @property
    def num_reserved(self) -> int:
        return sum([planned.length for planned in self.reserved]) if self.reserved else 0

    @property
    def tokens_when_grown(self) -> int:
        """Prompt and output, if it generates all that it may."""
        return self.num_prompt_tokens + self.max_tokens

    @property
    def max_kv_tokens(self) -> int:
        """The most KV it can ever need: the last token is never fed back."""
        return self.num_prompt_tokens + self.max_tokens - 1

    @property
    def is_ready(self) -> bool:
        """Holds KV, and neither a batch nor a migration touches it: free to run, move or be preempted."""
        return self.in_flight == 0 and self.status in (RequestStatus.PREFILLING, RequestStatus.DECODING)

    @property
    def can_run(self) -> bool:
        """Whether it is ready, or flowing: its next segment may follow what is in later stages."""
        return self.is_ready or self.flowing

    @property
    def resting_status(self) -> RequestStatus:
        """The status of a request with KV when nothing touches it."""
        return RequestStatus.DECODING if self.tokens_to_compute <= 1 else RequestStatus.PREFILLING

    def become(self, status: RequestStatus) -> None:
        if status is self.status:
            return
        if status not in ALLOWED_TRANSITIONS[self.status]:
            raise InternalError(f"request {self.id}: {self.status.value} cannot become {status.value}")
        self.status = status
