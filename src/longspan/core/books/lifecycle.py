"""What each event does to the books, before the policy is asked."""

from __future__ import annotations

from longspan.core.actions import RefuseRequest, RunBatch
from longspan.core.books.ledger import Ledger
from longspan.core.books.migration import finish_migration
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
from longspan.core.prefixes.moving import finish_move


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
        prefix_keys=bytearray(event.prefix_keys),
    )
    ledger.num_arrivals += 1
    ledger.requests[request.id] = request
    ledger.join_queue(request)
    request.num_cached_at_first = request.num_cached
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
    requests, rested = ledger.requests, list[Request]()
    for segment, output in zip(work.action.segments, _outputs(work.action, event), strict=True):
        request = requests[segment.request_id]
        if _settle(ledger, request, output):
            rested.append(request)
    ledger.make_ready(*rested)
    if work.is_repair:
        ledger.make_ready(*ledger.whole())


def complete_migration(ledger: Ledger, event: KVMigrated) -> None:
    work = ledger.migrations.get(event.migration_id)
    if work is None:
        raise InternalError(f"migration {event.migration_id} completed, but is not in flight")
    if not work.action.request_id:
        finish_move(ledger, work)
        return
    request = finish_migration(ledger, work)
    if request.status is RequestStatus.DRAINING:
        conclude(ledger, request)
    else:
        ledger.make_ready(request)
        if ledger.cluster[work.action.source].is_leaving:
            ledger.changes.moved.append(request)


def _refusal(ledger: Ledger, event: RequestArrived) -> RefuseRequest | None:
    wanted, fleet = event.num_prompt_tokens + event.max_tokens, ledger.cluster.fleet
    total = fleet.full.total
    if wanted > total:
        # Admitting only what fits the whole pool is what makes preemption end: a request alone always has
        # room.
        message = (
            f"The prompt has {event.num_prompt_tokens} tokens and max_tokens is {event.max_tokens}: "
            f"{wanted} tokens together, but this server holds {total} at most."
        )
        return RefuseRequest(event.request_id, message, "too_long")
    expected = ledger.most(fleet.expected)
    if wanted - ledger.keeps_on_one_instance > expected < ledger.most(fleet.full):
        message = (
            f"The request may have {wanted} tokens, but so many instances are lost that the others hold {expected} at "
            f"most, and none is expected back."
        )
        return RefuseRequest(event.request_id, message, "fleet_too_small")
    return refuse_when_full(event, ledger.waiting.num_all, ledger.config.max_waiting)


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


def _settle(ledger: Ledger, request: Request, output: TokenOutput | None) -> bool:
    """A batch with this request is done: it ended, or ended before, or goes on. Returns whether nothing touches it."""
    if request.status is RequestStatus.DRAINING:
        if request.in_flight == 0:
            conclude(ledger, request)
        return False  # A token sampled after the request's end is nobody's.
    if output is not None:
        request.num_output_tokens += 1
        if output.prefix_keys:
            request.prefix_keys += output.prefix_keys
        if output.finish_reason is not None:
            request.is_doubtful = output.finish_reason == "abort"
            _end(ledger, request, "aborted" if output.finish_reason == "abort" else "finished")
            return False
        if request.num_output_tokens >= request.max_tokens:
            raise InternalError(
                f"request {request.id} has its {request.max_tokens} tokens, but the driver did not end it"
            )
    return request.in_flight == 0 and request.status is not RequestStatus.REPAIRING


def _end(ledger: Ledger, request: Request, reason: EndReason) -> None:
    """Free its KV now, or when the last batch or migration that touches it is done."""
    request.end_reason = reason
    ledger.ended.append(request)
    if reason == "finished":
        ledger.num_finished += 1
        ledger.num_finished_tokens += request.num_output_tokens
    is_moving = request.status is RequestStatus.MIGRATING and request.id not in ledger.parted
    if request.in_flight > 0 or is_moving:
        ledger.hand_over(request)
        ledger.drop_claims(request)
        ledger.stop_flowing(request)
        ledger.repairing.pop(request.id, None)
        request.become(RequestStatus.DRAINING)
    else:
        conclude(ledger, request)


def conclude(ledger: Ledger, request: Request) -> None:
    """Let go of a request that has ended, now that nothing touches it any more."""
    assert request.end_reason is not None
    if request.id in ledger.placement:
        ledger.drop_kv(request, request.end_reason)
    ledger.forget(request)
