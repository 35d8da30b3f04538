"""The invariants between any two calls of `Scheduler.handle`. Checked when idle, and at every step of tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from longspan.core.actions import MigrateKV, RunBatch, Segment
from longspan.core.books.cluster import Instance, Work
from longspan.core.books.ledger import Ledger
from longspan.core.books.request import Request, RequestStatus
from longspan.core.internal_error import InternalError

AnyWork = Work[RunBatch] | Work[MigrateKV]


def check_invariants(ledger: Ledger) -> None:
    for check in INVARIANTS:
        check(ledger)


def kv_is_conserved(ledger: Ledger) -> None:
    """Each instance's capacity is what is free, what residences have there and what is on the way to it."""
    for instance in ledger.cluster.instances:
        migrations = [work.action for work in ledger.migrations.values()]
        arriving = sum(action.num_tokens for action in migrations if action.target == instance.id)
        held = ledger.placement.total(instance.id)
        _require(
            instance.used == held + arriving and 0 <= instance.used <= instance.capacity,
            f"instance {instance.id}: {instance.used} of {instance.capacity} slots used, "
            f"but residences have {held} and {arriving} arrive",
        )


def every_token_has_one_owner(ledger: Ledger) -> None:
    """Ranges are in order, without gap or overlap, merged, and cover exactly computed + scheduled tokens."""
    for request in ledger.requests.values():
        position, previous, counts = 0, None, Counter[int]()
        for piece in ledger.placement.ranges(request.id):
            _require(piece.start == position < piece.end, f"request {request.id}: {piece} is out of place")
            _require(piece.instance != previous, f"request {request.id}: {piece} should be merged")
            position, previous = piece.end, piece.instance
            counts[piece.instance] += piece.length
        _require(
            position == request.num_stored,
            f"request {request.id}: KV of {position} tokens, but {request.num_stored} computed or scheduled",
        )
        _require(dict(counts) == ledger.placement.counts(request.id), f"request {request.id}: wrong counts")
        _require(tuple(sorted(counts)) == ledger.placement.holders(request.id), "wrong holders")
        _require(tuple(sorted(counts.items())) == ledger.placement.context(request.id), "wrong context")


def work_names_its_residence(ledger: Ledger) -> None:
    """Work in flight refers to the residences of its requests, each of which has one that no other has."""
    numbers = [residence.number for residence in ledger.placement.residences()]
    _require(len(set(numbers)) == len(numbers), f"residences share a number: {sorted(numbers)}")
    named_by: list[Segment | MigrateKV] = [work.action for work in ledger.migrations.values()]
    for work in ledger.batches.values():
        named_by += work.action.segments
    for named in named_by:
        own = ledger.placement.own.get(named.request_id)
        _require(own is not None and own.number == named.residence, f"{named} names another residence than its own")


def instances_run_one_batch(ledger: Ledger) -> None:
    """Work runs on all of its instances and nowhere else; a queued batch is behind one of its group."""
    in_flight: list[AnyWork] = [*ledger.batches.values(), *ledger.migrations.values()]
    for instance in ledger.cluster.instances:
        fits = len(instance.later) <= instance.most_in_flight
        _require(fits, f"instance {instance.id}: too many batches in later stages")
        for work in (instance.running, instance.queued, *instance.later):
            if work is not None:
                _require(work in in_flight, f"instance {instance.id} runs what is not in flight")
                _require(instance.id in work.instances, f"instance {instance.id} runs another group's work")
        if instance.queued is not None:
            _require(
                instance.running is not None
                and instance.running.is_decode
                and instance.queued.instances == instance.running.instances,
                f"instance {instance.id}: the queued batch is not behind a decode of its own group",
            )
    for work in in_flight:
        places = {_slot(ledger.cluster[number], work) for number in work.instances}
        _require(places in ({"running"}, {"queued"}, {"later"}), f"{work.action} is {places} on its instances")


def instances_are_at_hand(ledger: Ledger) -> None:
    """The cluster's lists have exactly the instances that they are about, by number."""
    cluster = ledger.cluster
    idle = [instance for instance in cluster.instances if instance.is_idle]
    _require(cluster.idle() == idle, "others are idle")
    _require(cluster.idle_numbers == {i.id for i in idle}, "others are idle by number")
    _require(cluster.resting() == [i for i in idle if i.ready or i.flowing], "others are at rest")
    _require(cluster.decoding() == [i for i in cluster.instances if i.is_decoding], "others decode")
    engaged = {i.id for i in cluster.instances if not i.is_idle and not i.is_decoding}
    _require(cluster.engaged == engaged, "others are engaged")


def counts_in_flight_are_right(ledger: Ledger) -> None:
    """Batches and migrations refer to living requests, which know it."""
    batches: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    for work in ledger.batches.values():
        for segment in work.action.segments:
            _require(segment.request_id in ledger.requests, f"a batch refers to ended {segment.request_id}")
            batches[segment.request_id] += 1
            tokens[segment.request_id] += segment.length
    migrating = {work.action.request_id for work in ledger.migrations.values()}
    for request in ledger.requests.values():
        _require(
            (request.in_flight, request.num_scheduled) == (batches[request.id], tokens[request.id]),
            f"request {request.id} is in {batches[request.id]} batches in flight, not {request.in_flight}",
        )
        touched = request.in_flight > 0 or request.id in migrating
        _require(
            touched or request.status not in (RequestStatus.MIGRATING, RequestStatus.DRAINING),
            f"request {request.id} is {request.status.value}, but nothing touches it",
        )
    _require(migrating <= ledger.requests.keys(), f"migrations refer to ended {migrating}")


def nothing_refers_to_the_ended(ledger: Ledger) -> None:
    for request_id in ledger.placement:
        _require(request_id in ledger.requests, f"ended request {request_id} holds KV")
    for request in ledger.requests.values():
        _require(request.status is not RequestStatus.ENDED, f"ended request {request.id} is kept")


def growth_adds_up(ledger: Ledger) -> None:
    """The tokens when grown are those of exactly the requests that hold KV."""
    grown = sum(ledger.requests[request_id].tokens_when_grown for request_id in ledger.placement)
    _require(ledger.tokens_when_grown == grown, f"those with KV may grow to {grown}, not {ledger.tokens_when_grown}")


def the_queue_is_in_order(ledger: Ledger) -> None:
    """The queue holds exactly the waiting requests, by arrival; they have no KV."""
    queued = list(ledger.waiting)
    indices = [request.arrival_index for request in queued]
    _require(indices == sorted(set(indices)), f"the queue is out of order: {indices}")
    waiting = [request for request in ledger.requests.values() if request.status is RequestStatus.WAITING]
    _require(len(waiting) == len(queued), "the queue does not hold exactly the waiting requests")
    for request in queued:
        _require(
            request.status is RequestStatus.WAITING and request.num_stored == 0 and request.in_flight == 0,
            f"request {request.id} waits, but is {request.status.value} with {request.num_stored} tokens",
        )


def ready_lists_are_right(ledger: Ledger) -> None:
    """Exactly the ready requests are listed, wherever they hold KV, in order of readiness."""
    listed: Counter[str] = Counter()
    for instance in ledger.cluster.instances:
        orders = [request.ready_order for request in instance.ready.values()]
        _require(orders == sorted(orders), f"instance {instance.id}: the ready are out of order")
        for request_id in instance.ready:
            _require(instance.id in ledger.placement.holders(request_id), f"{request_id} holds nothing there")
            listed[request_id] += 1
    for request in ledger.requests.values():
        expected = len(ledger.placement.holders(request.id)) if request.is_ready else 0
        _require(listed[request.id] == expected, f"request {request.id} is not listed where it is ready")


def flowing_lists_are_right(ledger: Ledger) -> None:
    """Exactly the flowing are listed, wherever they hold KV: prefills with tokens left, none in a first stage."""
    listed: Counter[str] = Counter()
    for instance in ledger.cluster.instances:
        listed.update(instance.flowing.keys())
    first_stages = {
        segment.request_id
        for instance in ledger.cluster.instances
        if instance.running is not None and isinstance(instance.running.action, RunBatch)
        for segment in instance.running.action.segments
    }
    for request in ledger.requests.values():
        expected = len(ledger.placement.holders(request.id)) if request.flowing else 0
        _require(listed.pop(request.id, 0) == expected, f"request {request.id} is not listed where it flows")
        flows = (
            request.status is RequestStatus.PREFILLING
            and request.in_flight > 0
            and request.tokens_to_compute > 0
            and request.id not in first_stages
        )
        _require(request.flowing == flows, f"request {request.id} flows: {request.flowing}, but it should be {flows}")
    _require(not listed, f"ended requests flow: {sorted(listed)}")


def promises_add_up(ledger: Ledger) -> None:
    """Every request that holds KV and goes on has its headroom promised at home, and no other has any."""
    promised: Counter[int] = Counter()
    for request in ledger.requests.values():
        _require(request.promised == _due_promise(ledger, request), f"request {request.id}: wrong promise")
        if request.home is not None:
            promised[request.home] += request.promised
    for instance in ledger.cluster.instances:
        _require(instance.promised == promised[instance.id], f"instance {instance.id}: promises are wrong")


def reservations_are_kept(ledger: Ledger) -> None:
    """Reserved slots are free, and go on exactly where a request's KV ends, no further than it can ever come."""
    reserved: Counter[int] = Counter()
    for request in ledger.requests.values():
        position = request.num_stored
        for piece in request.reserved:
            _require(piece.start == position < piece.end, f"request {request.id}: {piece} does not go on at {position}")
            position = piece.end
            reserved[piece.instance] += piece.length
        _require(not request.reserved or position <= request.max_kv_tokens, f"request {request.id}: too much reserved")
        _require(
            not request.reserved or request.status is not RequestStatus.DRAINING,
            f"request {request.id} has ended, and still has slots reserved",
        )
    for instance in ledger.cluster.instances:
        _require(
            instance.reserved == reserved[instance.id] <= instance.free,
            f"instance {instance.id}: {instance.reserved} slots reserved, {instance.free} free, "
            f"{reserved[instance.id]} in requests' plans",
        )


INVARIANTS: tuple[Callable[[Ledger], None], ...] = (
    kv_is_conserved,
    every_token_has_one_owner,
    work_names_its_residence,
    instances_run_one_batch,
    instances_are_at_hand,
    counts_in_flight_are_right,
    nothing_refers_to_the_ended,
    growth_adds_up,
    the_queue_is_in_order,
    ready_lists_are_right,
    flowing_lists_are_right,
    promises_add_up,
    reservations_are_kept,
)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise InternalError(message)


def _slot(instance: Instance, work: AnyWork) -> str:
    if instance.running is work:
        return "running"
    if instance.queued is work:
        return "queued"
    return "later" if any(work is other for other in instance.later) else "nowhere"


def _due_promise(ledger: Ledger, request: Request) -> int:
    if request.id not in ledger.placement or request.status is RequestStatus.DRAINING:
        return 0
    left = request.max_kv_tokens - request.num_stored - request.num_reserved
    return min(left, ledger.config.decode_headroom)
