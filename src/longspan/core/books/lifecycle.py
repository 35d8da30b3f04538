"""What each event does to the books, before the policy is asked."""

from __future__ import annotations

from longspan.core.actions import RefuseRequest, RunBatch
from longspan.core.books.ledger import Ledger
from longspan.core.books.request import EndReason, Request, RequestStatus
from longspan.core.events import (
    BatchCompleted,
    FirstStageFree,
    KVMigrated,
    RequestAborted,
    RequestArrived,
    TokenOutput,
)
from longspan.core.internal_error import InternalError


def arrive(ledger: Ledger, event: RequestArrived, now: float) -> None:
    if event.request_id in ledger.requests:
        raise InternalError(f"request {event.request_id} arrived twice")
    if event.num_prompt_tokens < 1 or event.max_tokens < 1:
        raise InternalError(f"{event} was not validated: both lengths must be at least 1")
    refusal = _refusal(ledger, event)
    if refusal is not None:
        ledger.actions.append(refusal)
        return
    request = Request(
        event.request_id,
        event.num_prompt_tokens,
        event.max_tokens,
        now,
        arrival_index=ledger.num_arrivals,
        service=event.service,
    )
    ledger.num_arrivals += 1
    ledger.requests[request.id] = request
    ledger.waiting.add(request)
    ledger.arrived.append(request)


def abort(ledger: Ledger, event: RequestAborted) -> None:
    request = ledger.requests.get(event.request_id)
    if request is not None and request.status is not RequestStatus.DRAINING:
        _end(ledger, request, "aborted")


def free_first_stage(ledger: Ledger, event: FirstStageFree) -> None:
    work = ledger.batches.get(event.batch_id)
    if work is None:
        raise InternalError(f"batch {event.batch_id} leaves the first stage, but is not in flight")
    ledger.pass_on(work)


def complete_batch(ledger: Ledger, event: BatchCompleted) -> None:
    work = ledger.batches.get(event.batch_id)
    if work is None:
        raise InternalError(f"batch {event.batch_id} completed, but is not in flight")
    ledger.finish_batch(work)
    for segment, output in zip(work.action.segments, _outputs(work.action, event), strict=True):
        _settle(ledger, ledger.requests[segment.request_id], output)


def complete_migration(ledger: Ledger, event: KVMigrated) -> None:
    work = ledger.migrations.get(event.migration_id)
    if work is None:
        raise InternalError(f"migration {event.migration_id} completed, but is not in flight")
    request = ledger.finish_migration(work)
    if request.status is RequestStatus.DRAINING:
        _conclude(ledger, request)
    else:
        ledger.make_ready(request)


def _refusal(ledger: Ledger, event: RequestArrived) -> RefuseRequest | None:
    wanted, total = event.num_prompt_tokens + event.max_tokens, ledger.cluster.total_capacity
    if wanted > total:
        # Admitting only what fits the whole pool is what makes preemption end: a request alone always has
        # room.
        message = (
            f"The prompt has {event.num_prompt_tokens} tokens and max_tokens is {event.max_tokens}: "
            f"{wanted} tokens together, but this server holds {total} at most."
        )
        return RefuseRequest(event.request_id, message, "too_long")
    return refuse_when_full(event, len(ledger.waiting), ledger.config.max_waiting)


def refuse_when_full(event: RequestArrived, num_waiting: int, max_waiting: int) -> RefuseRequest | None:
    """Refuse an arrival that may not wait, since so many do already."""
    if num_waiting < max_waiting:
        return None
    message = f"{num_waiting} requests are waiting, and at most {max_waiting} may."
    return RefuseRequest(event.request_id, message, "queue_full")


def _outputs(batch: RunBatch, event: BatchCompleted) -> list[TokenOutput | None]:
    """Segment by segment."""
    expected = [segment.request_id for segment in batch.segments if segment.emits]
    got = [output.request_id for output in event.outputs]
    if got != expected:
        raise InternalError(f"batch {batch.batch_id} brought tokens for {got}, but should for {expected}")
    outputs = iter(event.outputs)
    return [next(outputs) if segment.emits else None for segment in batch.segments]


def _settle(ledger: Ledger, request: Request, output: TokenOutput | None) -> None:
    """A batch with this request is done: it ended, or ended before, or goes on."""
    if request.status is RequestStatus.DRAINING:
        if request.in_flight == 0:
            _conclude(ledger, request)
        return  # A token sampled after the request's end is nobody's.
    if output is not None:
        request.num_output_tokens += 1
        if output.finish_reason is not None:
            _end(ledger, request, "aborted" if output.finish_reason == "abort" else "finished")
            return
        if request.num_output_tokens >= request.max_tokens:
            raise InternalError(
                f"request {request.id} has its {request.max_tokens} tokens, but the driver did not end it"
            )
    if request.in_flight == 0:
        ledger.make_ready(request)


def _end(ledger: Ledger, request: Request, reason: EndReason) -> None:
    """Free its KV now, or when the last batch or migration that touches it is done."""
    request.end_reason = reason
    ledger.ended.append(request)
    if reason == "finished":
        ledger.num_finished += 1
        ledger.num_finished_tokens += request.num_output_tokens
    if request.in_flight > 0 or request.status is RequestStatus.MIGRATING:
        ledger.drop_claims(request)
        ledger.stop_flowing(request)
        request.become(RequestStatus.DRAINING)
    else:
        _conclude(ledger, request)


def _conclude(ledger: Ledger, request: Request) -> None:
    assert request.end_reason is not None
    if request.id in ledger.placement:
        ledger.drop_kv(request, request.end_reason)
    ledger.forget(request)
