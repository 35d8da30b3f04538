"""What happened. The only input of `Scheduler.handle`, beside the time."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from longspan.service_level import DEFAULT_SERVICE, ServiceLevel

FinishReason = Literal["stop", "length", "abort"]


class RequestArrived(Struct, frozen=True, gc=False, tag=True):
    """A validated request joins the queue. `max_tokens` is its limit; where it really ends is unknown.

    prefix_keys: of the whole blocks of its prompt, side by side (`prefix_keys.PrefixHasher`). Empty: its KV is not
        shared.
    """

    request_id: str
    num_prompt_tokens: int
    max_tokens: int
    service: ServiceLevel = DEFAULT_SERVICE
    prefix_keys: bytes = b""


class RequestAborted(Struct, frozen=True, gc=False, tag=True):
    """The client is gone, or said so. Unknown or finished ids are ignored: the two can cross on the way."""

    request_id: str


class TokenOutput(Struct, frozen=True, gc=False):
    """One sampled token of one request. `finish_reason` is set when the request ends with it.

    prefix_keys: of the block that the token completes, if it does, and the request goes on.
    """

    request_id: str
    finish_reason: FinishReason | None = None
    prefix_keys: bytes = b""


class FirstStageFree(Struct, frozen=True, gc=False, tag=True):
    """A batch has left the first pipeline stage on all of its instances, or is about to: they may take the next one.

    It is told early by about as long as the next one needs to get there, for workers are first in, first out: then the
    stage goes from one to the next without a pause. It comes before the batch's `BatchCompleted`, and only where there
    are several stages.
    """

    batch_id: int


class BatchCompleted(Struct, frozen=True, gc=False, tag=True):
    """A batch ran. One output for each of its segments that emits, in segment order."""

    batch_id: int
    outputs: tuple[TokenOutput, ...] = ()


class KVMigrated(Struct, frozen=True, gc=False, tag=True):
    """A MigrateKV is done: the target holds the tokens, the source's slots are free."""

    migration_id: int


class InstanceLost(Struct, frozen=True, gc=False, tag=True):
    """An instance is gone, and all KV that it held; it serves no more until it joins.

    Work in flight on it is void, and so is what came behind that (`CancelBatch`): none of it is ever told to have
    completed. returns: whether it is expected to join again. It may be told again of one that is lost, when that has
    changed.
    """

    instance: int
    returns: bool = True


class InstanceJoined(Struct, frozen=True, gc=False, tag=True):
    """An instance serves, and holds no KV: one that was lost, or a new one, whose number is the next.

    kv_tokens: slots of its KV pool.
    """

    instance: int
    kv_tokens: int


class InstanceLeaving(Struct, frozen=True, gc=False, tag=True):
    """An instance is to be emptied: nothing new begins there, what it holds moves away while requests go on.

    `InstanceDrained` tells when it is empty; what is then done with it comes as `InstanceLost`.
    """

    instance: int


FleetEvent = InstanceLost | InstanceJoined | InstanceLeaving
Event = RequestArrived | RequestAborted | FirstStageFree | BatchCompleted | KVMigrated | FleetEvent
