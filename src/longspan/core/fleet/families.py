"""Requests that share KV, under a policy that keeps each on one instance: they move together, one after the other.

A migration takes along what its request shares. The others that refer to that have KV on two instances then: until the
rest has come after it, they are in nobody's hands.
"""

from __future__ import annotations

from msgspec.structs import replace

from longspan.core.books.ledger import Ledger
from longspan.core.books.migration import start_migration
from longspan.core.books.request import Request, RequestStatus


def family_of(ledger: Ledger, request: Request) -> list[Request]:
    """Return the request, and those that share KV with it, or with one of these."""
    found, residences = {request.id: request}, dict[int, None]()
    for member in (family := [request]):  # grows
        for residence in ledger.placement.all_of(member.id):
            if residence.number not in residences:
                residences[residence.number] = None
                for name in ledger.prefixes.referrers(residence):
                    if name not in found:
                        found[name] = ledger.requests[name]
                        family.append(found[name])
    return family


def slots_of(ledger: Ledger, family: list[Request], instance: int) -> int:
    """Return the slots that they take there, what they share once, and what is reserved for them."""
    residences = {each.number: each for request in family for each in ledger.placement.all_of(request.id)}
    slots = sum([request.num_reserved for request in family])
    for residence in residences.values():
        node = ledger.prefixes.nodes.get(residence.number)
        end = residence.end if node is None else node.referenced_end
        slots += residence.counts_between(residence.begin, end).get(instance, 0)
    return slots


def is_at_rest(family: list[Request]) -> bool:
    """Tell whether nothing touches any of them that goes on."""
    return all([request.is_ready or request.status is RequestStatus.DRAINING for request in family])


def move_whole(ledger: Ledger, request: Request, source: int, target: int) -> None:
    """Move all that the request has on an instance, with what is reserved for it."""
    if request.reserved:
        ledger.reserve(request, tuple([replace(each, instance=target) for each in request.reserved]))
    start_migration(ledger, request, source, target, tuple(ledger.placement.held(request.id, source)))


def unite(ledger: Ledger) -> None:
    """Have those move on whose KV is on several instances, before anything else begins there; without room, anew."""
    for request in list(ledger.parted.values()):
        held = ledger.placement.counts(request.id)
        target = max(held, key=lambda number: (not ledger.cluster[number].is_leaving, held[number], -number))
        source = next(number for number in held if number != target)
        if held[source] + request.num_reserved > ledger.cluster[target].unreserved:
            ledger.return_to_queue(request)
            ledger.changes.returned.append(request)
        elif ledger.cluster[source].is_idle and ledger.cluster[target].is_idle:
            move_whole(ledger, request, source, target)
        else:
            for number in sorted({source, target} & ledger.cluster.idle_numbers):
                ledger.cluster.hold(number)
