"""What happened. The only input of `Scheduler.handle`, beside the time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from longspan.service_level import DEFAULT_SERVICE, ServiceLevel

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True)
class RequestArrived:
    """A validated request joins the queue. `max_tokens` is its limit; where it really ends is unknown."""

    request_id: str
    num_prompt_tokens: int
    max_tokens: int
    service: ServiceLevel = DEFAULT_SERVICE


@dataclass(frozen=True, slots=True)
class RequestAborted:
    """The client is gone, or said so. Unknown or finished ids are ignored: the two can cross on the way."""

    request_id: str


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """One sampled token of one request. `finish_reason` is set when the request ends with it."""

    request_id: str
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class FirstStageFree:
    """A batch has left the first pipeline stage on all of its instances: they may take the next one behind it.

    It comes before the batch's `BatchCompleted`, and only where there are several stages.
    """

    batch_id: int


@dataclass(frozen=True, slots=True)
class BatchCompleted:
    """A batch ran. One output for each of its segments that emits, in segment order."""

    batch_id: int
    outputs: tuple[TokenOutput, ...] = ()


@dataclass(frozen=True, slots=True)
class KVMigrated:
    """A MigrateKV is done: the target holds the tokens, the source's slots are free."""

    migration_id: int


Event = RequestArrived | RequestAborted | FirstStageFree | BatchCompleted | KVMigrated
EVENT_TYPES: tuple[type[Event], ...] = (RequestArrived, RequestAborted, FirstStageFree, BatchCompleted, KVMigrated)
