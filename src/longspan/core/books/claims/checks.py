"""What must hold of claims between any two calls of `Scheduler.handle`."""

from __future__ import annotations

from collections import Counter

from longspan.core.books.claims.repairs import Repairs
from longspan.core.books.request import Request, RequestStatus
from longspan.core.internal_error import require


def promises_add_up(books: Repairs) -> None:
    """Every request that holds KV and goes on has its headroom promised at home, and no other has any."""
    promised: Counter[int] = Counter()
    for request in books.requests.values():
        require(request.promised == _due_promise(books, request), "request %s: wrong promise", request.id)
        if request.home is not None:
            promised[request.home] += request.promised
    for instance in books.cluster.instances:
        promised[instance.id] += instance.capacity if instance.is_leaving else 0
        require(instance.promised == promised[instance.id], "instance %s: promises are wrong", instance.id)


def reservations_are_kept(books: Repairs) -> None:
    """Reserved slots are free, and go on exactly where a request's KV ends, no further than it can ever come."""
    reserved: Counter[int] = Counter()
    for request in books.requests.values():
        for piece in request.repairs:
            reserved[piece.instance] += piece.length
        position = request.num_kept
        for piece in request.reserved:
            require(piece.start == position < piece.end, "request %s: %s is elsewhere", request.id, piece)
            position = piece.end
            reserved[piece.instance] += piece.length
        require(not request.reserved or position <= request.max_kv_tokens, "request %s: too much", request.id)
        require(
            not request.reserved or request.status is not RequestStatus.DRAINING,
            "request %s has ended, and still has slots reserved", request.id,
        )
    for instance in books.cluster.instances:
        require(
            instance.reserved == reserved[instance.id] <= instance.free,
            "instance %s: %s slots reserved, %s free, %s in requests' plans",
            instance.id, instance.reserved, instance.free, reserved[instance.id],
        )


def repairs_are_known(books: Repairs) -> None:
    """Exactly the requests that are being repaired are listed, and each lacks something, or is about to have it."""
    status = {name for name, request in books.requests.items() if request.status is RequestStatus.REPAIRING}
    require(status == books.repairing.keys(), "%s are being repaired, but others are listed", status)
    for request in books.requests.values():
        is_listed, lacks = request.id in books.repairing, bool(request.repairs or request.awaited)
        require(is_listed or not lacks, "request %s has repairs, but is %s", request.id, request.status)
        lacks = lacks or request.in_flight > 0 or request.num_scheduled > 0
        require(not is_listed or lacks, "request %s is whole already", request.id)


def _due_promise(books: Repairs, request: Request) -> int:
    if request.id not in books.placement or request.status is RequestStatus.DRAINING:
        return 0
    left = request.max_kv_tokens - request.num_kept - request.num_reserved
    return min(left, books.config.decode_headroom)
