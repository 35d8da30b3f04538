"""Requests and the fleet of the day: who does not fit waits aside for instances to join, or is refused."""

from __future__ import annotations

from longspan.core.actions import RefuseRequest
from longspan.core.books.ledger import Ledger
from longspan.core.books.request import Request, RequestStatus


def refit(ledger: Ledger) -> None:
    """See who fits now that the fleet is another."""
    fleet = ledger.cluster.fleet
    serving = ledger.most(fleet.serving)
    ledger.overgrown = [r for r in map(ledger.requests.__getitem__, ledger.placement) if r.num_tokens > serving]
    _interrupt_who_rests(ledger)
    for request in [*ledger.waiting, *ledger.waiting.aside.values()]:
        if _is_in_vain(ledger, request):
            refuse(ledger, request)
        elif ledger.fits(request):
            if request.id in ledger.waiting.aside:
                ledger.waiting.remove(request)
                ledger.waiting.add(request)
        else:
            ledger.waiting.set_aside(request)
    forget_who_left(ledger)


def forget_who_left(ledger: Ledger) -> None:
    """Count those no more that have left for good, once nobody is there who needs as much room as there was."""
    fleet = ledger.cluster.fleet
    if fleet.gone:
        most = ledger.most(fleet.kept)
        if all([request.max_kv_tokens <= most for request in ledger.requests.values()]):
            ledger.cluster.forget_gone()


def stop_the_overgrown(ledger: Ledger) -> None:
    """Let no request go on whose next token would not fit even if it were alone: it waits for instances to join."""
    fleet = ledger.cluster.fleet
    for waiting in [request for request in ledger.waiting.aside.values() if _is_in_vain(ledger, request)]:
        refuse(ledger, waiting)
    serving = ledger.most(fleet.serving)
    if serving == ledger.most(fleet.full):
        return
    for batch in ledger.completed:
        for segment in batch.segments:
            request = ledger.requests.get(segment.request_id)
            if request is not None and request.num_tokens > serving and request.status is not RequestStatus.WAITING:
                ledger.overgrown.append(request)
    if ledger.overgrown:
        _interrupt_who_rests(ledger)


def refuse(ledger: Ledger, request: Request) -> None:
    """Give up a waiting request that the fleet cannot hold, nor will as far as is known."""
    wanted, most = request.num_prompt_tokens + request.max_tokens, ledger.most(ledger.cluster.fleet.expected)
    message = (
        f"The request may have {wanted} tokens, but so many instances are lost that the others hold {most} at most, "
        f"and none is expected back."
    )
    request.end_reason = "aborted"
    if request in ledger.arrived:  # then the policy does not know it
        ledger.arrived.remove(request)
    else:
        ledger.ended.append(request)
    ledger.forget(request)
    ledger.actions.append(RefuseRequest(request.id, message, "fleet_too_small"))


def _is_in_vain(ledger: Ledger, request: Request) -> bool:
    """Tell whether a waiting request could not begin though all were back that are expected. One that never could is
    the policy's to refuse, if that is asked again."""
    fleet = ledger.cluster.fleet
    expected = ledger.most(fleet.expected)
    is_too_long = request.num_tokens + ledger.headroom(request) > expected
    return is_too_long and (request.max_kv_tokens <= ledger.most(fleet.full) or not expected)


def _interrupt_who_rests(ledger: Ledger) -> None:
    """Have those of the overgrown wait that nothing touches; the others when they come to rest."""
    busy = list[Request]()
    for request in dict.fromkeys(ledger.overgrown):
        is_apart = request.id in ledger.parted
        if request.is_ready or is_apart or (request.status is RequestStatus.REPAIRING and not request.in_flight):
            ledger.return_to_queue(request)
            ledger.changes.returned.append(request)
            if _is_in_vain(ledger, request):
                refuse(ledger, request)
        elif request.status not in (RequestStatus.WAITING, RequestStatus.DRAINING, RequestStatus.ENDED):
            busy.append(request)
    ledger.overgrown = busy
