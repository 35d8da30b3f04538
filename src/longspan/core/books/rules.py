"""What makes a batch or a migration legal. A policy that breaks a rule gets an `InternalError` naming it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from longspan.core.actions import OWN, KVRange, Segment
from longspan.core.books.decode_steps import Decodes
from longspan.core.books.ledger import Ledger
from longspan.core.books.request import Request, RequestStatus
from longspan.core.internal_error import InternalError


def check_batch(ledger: Ledger, group: tuple[int, ...], segments: Sequence[Segment], decodes: Decodes = ()) -> None:
    """Raise unless everything holds that must before a policy's batch is issued."""
    check_idle(ledger, group)
    names = {segment.request_id for segment in segments} | {request.id for request, _ in decodes}
    if len(names) != len(segments) + len(decodes):
        raise InternalError("a request is in the batch twice")
    ready = ledger.cluster.ready_decodes
    for request, master in decodes:
        if request.reserved or ready.get(request.id) is not request:  # who is listed, and reserves nothing, may decode
            _check_decode(ledger, request, master)
    for segment in segments:
        _check_segment(ledger, segment)
    _check_ring(segments)
    _check_group(ledger, group, segments, decodes)
    _check_room(ledger, segments, decodes)


def check_migration(
    ledger: Ledger, request: Request, source: int, target: int, ranges: tuple[tuple[int, int], ...]
) -> None:
    check_ready(request)
    check_idle(ledger, (source, target))
    ledger.placement.require_held(request.id, source, ranges)
    tokens = sum(end - start for start, end in ranges)
    if tokens > ledger.cluster[target].unreserved:
        raise InternalError(f"instance {target} has no room for {tokens} migrated tokens")


def check_reservation(ledger: Ledger, request: Request, planned: Sequence[KVRange]) -> None:
    """Raise unless these are the next tokens in order, none that can never come, in slots not reserved otherwise."""
    if request.status is RequestStatus.DRAINING:
        raise InternalError(f"request {request.id} has ended: nothing can be reserved for it")
    needed: Counter[int] = Counter()
    position = request.num_stored
    for piece in planned:
        if piece.start != position or piece.end <= piece.start or piece.instance not in ledger.cluster:
            raise InternalError(f"request {request.id}: {piece} is no plan for the tokens from {position} on")
        position = piece.end
        needed[piece.instance] += piece.length
    if planned and position > request.max_kv_tokens:
        raise InternalError(f"request {request.id}: {position} tokens planned, but it ends at {request.max_kv_tokens}")
    own: Counter[int] = Counter()
    for piece in request.reserved:
        own[piece.instance] += piece.length
    for instance, tokens in needed.items():
        free = ledger.cluster[instance].unreserved + own[instance]
        if tokens > free:
            raise InternalError(f"instance {instance} has {free} slots that may be reserved, not {tokens}")


def check_ready(request: Request) -> None:
    if not request.is_ready:
        raise InternalError(f"request {request.id} is not ready: {request.status.value}, {request.in_flight} in flight")


def involved_instances(segments: Sequence[Segment]) -> set[int]:
    """Return the instances that compute, store, or hold context."""
    involved: set[int] = set()
    for segment in segments:
        involved.update(segment.compute)
        for stored in segment.store:
            involved.add(stored.instance)
        for instance, _ in segment.context:
            involved.add(instance)
    return involved


def check_idle(ledger: Ledger, group: tuple[int, ...]) -> None:
    if len(set(group)) != len(group):
        raise InternalError(f"group {group} names an instance twice")
    for number in group:
        if number not in ledger.cluster:
            raise InternalError(f"there is no instance {number}")
        if not ledger.cluster[number].is_idle:
            raise InternalError(f"instance {number} is busy")


def _check_decode(ledger: Ledger, request: Request, master: int) -> None:
    if ledger.requests.get(request.id) is not request:
        raise InternalError(f"request {request.id} is unknown or has ended")
    check_ready(request)
    if request.tokens_to_compute != 1 or request.id not in ledger.cluster.decode_holders:
        raise InternalError(f"request {request.id} has {request.tokens_to_compute} tokens without KV: it cannot decode")
    if request.reserved and request.reserved[0].instance != master:
        raise InternalError(f"request {request.id} stores at {master}, elsewhere than reserved: {request.reserved}")


def _check_segment(ledger: Ledger, segment: Segment) -> None:
    request = ledger.requests.get(segment.request_id)
    if request is None:
        raise InternalError(f"request {segment.request_id} is unknown or has ended")
    if request.status is not RequestStatus.WAITING and not request.flowing:
        check_ready(request)
    end = segment.start + segment.length
    if segment.start != request.num_stored or not segment.start < end <= request.num_tokens:
        raise InternalError(
            f"{segment} does not continue request {request.id}: "
            f"{request.num_stored} of {request.num_tokens} tokens have KV"
        )
    if segment.emits != (end == request.num_tokens):
        raise InternalError(f"{segment} must sample a token exactly if it reaches the last one known")
    own = ledger.placement.own.get(request.id)
    held, earlier = ledger.placement.context(request.id), ledger.placement.earlier(request.id)
    if segment.context != held or segment.earlier != earlier:
        raise InternalError(f"{segment}: its context is not where the KV is, {held}")
    if segment.residence != OWN and (own is None or segment.residence != own.number):
        raise InternalError(f"{segment}: its residence is {own.number if own is not None else 'yet to begin'}")
    _check_store(segment)
    _check_plan(segment, request)


def _check_store(segment: Segment) -> None:
    position = segment.start
    for stored in segment.store:
        if stored.start != position or stored.end <= stored.start:
            raise InternalError(f"{segment}: the ranges to store have a gap, overlap or are empty")
        if stored.instance not in segment.compute:
            raise InternalError(f"{segment}: instance {stored.instance} stores, but does not compute")
        position = stored.end
    if position != segment.end:
        raise InternalError(f"{segment}: the ranges to store do not cover it")


def _check_plan(segment: Segment, request: Request) -> None:
    """A request that has slots reserved takes exactly these, in order."""
    if not request.reserved:
        return
    planned = [(r.instance, r.start, min(r.end, segment.end)) for r in request.reserved if r.start < segment.end]
    if [(stored.instance, stored.start, stored.end) for stored in segment.store] != planned:
        raise InternalError(f"{segment} stores elsewhere than reserved: {request.reserved}")


def _check_ring(segments: Sequence[Segment]) -> None:
    """All segments over several instances go round one ring: striped ones from a start of their own, or in pieces."""
    ring: tuple[int, ...] | None = None
    for segment in segments:
        compute = segment.compute
        if segment.cuts:
            _check_cuts(segment)
            compute = tuple(sorted(segment.computing))
        if len(compute) == 1:
            continue
        if not compute or len(set(compute)) != len(compute):
            raise InternalError(f"{segment}: nobody computes, or somebody twice")
        if ring is None:
            ring = compute
        shift = ring.index(compute[0]) if compute[0] in ring else 0
        same = set(ring) == set(compute) if segment.cuts else ring[shift:] + ring[:shift] == compute
        if not same:
            raise InternalError(f"{segment}: {compute} is not a rotation of the batch's ring {ring}")


def _check_cuts(segment: Segment) -> None:
    edges = (segment.start, *segment.cuts, segment.end)
    if len(segment.cuts) != len(segment.compute) - 1 or any(low >= high for low, high in pairwise(edges)):
        raise InternalError(f"{segment}: its cuts do not make a piece for each of {segment.compute}")
    if len(segment.computing) == 1:
        raise InternalError(f"{segment}: it is cut for one instance alone")


def _check_group(ledger: Ledger, group: tuple[int, ...], segments: Sequence[Segment], decodes: Decodes) -> None:
    involved = involved_instances(segments)
    involved.update([master for _, master in decodes])
    involved.update(*{ledger.cluster.decode_holders[request.id] for request, _ in decodes})
    if not involved or involved != set(group):
        raise InternalError(f"group {group} is not who takes part: {sorted(involved)}")


def _check_room(ledger: Ledger, segments: Sequence[Segment], decodes: Decodes) -> None:
    needed = Counter([master for request, master in decodes if not request.reserved])
    for segment in segments:
        if not ledger.requests[segment.request_id].reserved:
            for stored in segment.store:
                needed[stored.instance] += stored.end - stored.start
    for instance, tokens in needed.items():
        free = ledger.cluster[instance].unreserved
        if tokens > free:
            raise InternalError(f"instance {instance} has {free} free slots, not {tokens}")
