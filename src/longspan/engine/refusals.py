"""Requests that are not served, and what they are told."""

from __future__ import annotations

import msgspec

from longspan.core.actions import RefuseRequest, RunBatch
from longspan.engine.request import EngineRequest
from longspan.errors import FleetTooSmallError, LongspanError, OverloadedError, QueueFullError, RequestError
from longspan.worker.messages import Run, decode_command, encode


def check_it_travels(request: EngineRequest) -> None:
    """Raises RequestError, before anything is known of the request, if its workers could not read it."""
    state = request.sampling_state()
    try:
        decode_command(encode(Run(RunBatch(0, (), ()), {}, {request.request_id: state})))
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError) as error:
        raise RequestError(f"the request holds a value that cannot be handed on: {error}") from error


def refusal(action: RefuseRequest, next_s: float) -> LongspanError:
    """Return what the request is told. next_s: when to come again, where the policy does not say."""
    retry_after_s = next_s if action.retry_after_s is None else action.retry_after_s
    match action.reason:
        case "queue_full":
            return QueueFullError(action.message, retry_after_s=retry_after_s)
        case "late":
            return OverloadedError(action.message, retry_after_s=retry_after_s)
        case "fleet_too_small":
            return FleetTooSmallError(action.message, retry_after_s=retry_after_s)
        case "too_long":
            return RequestError(action.message, param="max_tokens", code="context_length_exceeded")
