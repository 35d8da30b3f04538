"""A request as the scheduler sees it: lengths and counts, never text or token values."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
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
    REPAIRING = "repairing"
    """Tokens before its last lack KV, for an instance was lost: they are computed again before it goes on."""
    DRAINING = "draining"
    """It has ended, but a batch or a migration that was issued before still touches its KV."""
    ENDED = "ended"
    """Nothing refers to it any more."""


_S = RequestStatus
ALLOWED_TRANSITIONS: Mapping[RequestStatus, Set[RequestStatus]] = {
    _S.WAITING: {_S.PREFILLING, _S.ENDED},
    _S.PREFILLING: {_S.DECODING, _S.MIGRATING, _S.REPAIRING, _S.WAITING, _S.DRAINING, _S.ENDED},
    _S.DECODING: {_S.MIGRATING, _S.REPAIRING, _S.WAITING, _S.DRAINING, _S.ENDED},
    _S.MIGRATING: {_S.PREFILLING, _S.DECODING, _S.REPAIRING, _S.WAITING, _S.DRAINING},
    _S.REPAIRING: {_S.PREFILLING, _S.DECODING, _S.WAITING, _S.DRAINING, _S.ENDED},
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
    reserved: where its next tokens will go, in token order from `num_stored` on, or behind those in `repairs`; slots
        are set aside there, and no other request can take them. Empty unless the policy reserves.
    repairs: tokens that it had stored, or was about to, and that are lost: where they go, in token order; slots are set
        aside there, too. awaited: [start, end) of others that are lost, which it shares with those who repair them.
        Both are empty unless it is being repaired.
    prefix_keys: of the whole blocks of its tokens, as far as they are known; see `prefix_keys.PrefixHasher`. Empty: its
        KV is nobody else's.
    num_cached: tokens that it would have found in the pool when it began to wait, and need not compute; an estimate,
        for what it finds when it starts may be more or less. num_cached_at_first: the same at its arrival.
    blocks_found: how many the index had when it was looked up last; where the next look begins, no more.
    is_doubtful: it ended with an error of its output: what it computed, or used, shall not be found again.
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
    repairs: tuple[KVRange, ...] = ()
    awaited: tuple[tuple[int, int], ...] = ()
    prefix_keys: bytearray = field(default_factory=bytearray)
    num_cached: int = 0
    num_cached_at_first: int = 0
    blocks_found: int = 0
    is_doubtful: bool = False
    ready_order: int = 0
    prefills_seen: int = 0
    end_reason: EndReason | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens known so far: prompt and output."""
        return self.num_prompt_tokens + self.num_output_tokens

    @property
    def num_stored(self) -> int:
        """Tokens that have a KV slot; unless it is being repaired the next segment starts here."""
        return self.num_computed + self.num_scheduled

    @property
    def missing(self) -> tuple[tuple[int, int], ...]:
        """[start, end) of the tokens known so far that have no KV slot: they are computed next, in order.

        These are the last ones; before them, while it is being repaired, what it has lost.
        """
        if not self.repairs and not self.awaited:
            return ((self.num_stored, self.num_tokens),) if self.tokens_to_compute else ()
        found: list[tuple[int, int]] = []
        lost = sorted([*[(piece.start, piece.end) for piece in self.repairs], *self.awaited])
        for start, end in (*lost, (self.num_kept, self.num_tokens)):
            if found and found[-1][1] == start:
                start = found.pop()[0]
            found.append((start, end))
        return tuple(found)

    @property
    def tokens_to_compute(self) -> int:
        """Tokens known so far that are missing."""
        return self.num_prompt_tokens + self.num_output_tokens - self.num_computed - self.num_scheduled

    @property
    def slots_to_take(self) -> int:
        """KV slots that the tokens known so far still have to find. Those that are missing find theirs as they run."""
        return self.tokens_to_compute

    @property
    def num_known(self) -> int:
        """Tokens that need not be computed, as predictions go: those with a slot, or while it waits `num_cached`."""
        return self.num_cached if self.status is RequestStatus.WAITING else self.num_computed + self.num_scheduled

    @property
    def num_lost(self) -> int:
        """Tokens that are yet to be repaired."""
        return sum([lost.length for lost in self.repairs]) if self.repairs else 0

    @property
    def num_awaited(self) -> int:
        return sum([end - start for start, end in self.awaited]) if self.awaited else 0

    @property
    def num_kept(self) -> int:
        """Tokens that have a KV slot, or will have it once it is repaired; then the next segment starts here."""
        return self.num_computed + self.num_scheduled + self.num_lost + self.num_awaited

    @property
    def num_reserved(self) -> int:
        return sum([planned.length for planned in self.reserved]) if self.reserved else 0

    @property
    def slots(self) -> int:
        """KV slots that it has, that are reserved for it, or that it may count on."""
        return self.num_kept + self.num_reserved + self.promised

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
