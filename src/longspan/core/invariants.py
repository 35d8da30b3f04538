"""The invariants between any two calls of `Scheduler.handle`. Checked when idle, and at every step of tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from longspan.core.actions import MigrateKV, RunBatch, Segment
from longspan.core.books.claims.checks import promises_add_up, repairs_are_known, reservations_are_kept
from longspan.core.books.cluster import Instance, Work
from longspan.core.books.ledger import Ledger
from longspan.core.books.request import RequestStatus
from longspan.core.internal_error import require
from longspan.core.prefixes.checks import check_prefixes

AnyWork = Work[RunBatch] | Work[MigrateKV]


def check_invariants(ledger: Ledger) -> None:
    for check in INVARIANTS:
        check(ledger)


def kv_is_conserved(ledger: Ledger) -> None:
    """Each instance's capacity is what is free, what residences have there and what is on the way to it; the slots of
    tokens to which some request refers are used, those of the others cached."""
    migrations = [work.action for work in ledger.migrations.values()]
    cached = Counter[int]()
    used = Counter({instance.id: ledger.placement.total(instance.id) for instance in ledger.cluster.instances})
    for node in ledger.prefixes.nodes.values():
        cached.update(node.cached())
        if node.writer is None:
            used.update(node.residence.counts_between(node.residence.begin, node.referenced_end))
    for instance in ledger.cluster.instances:
        arriving = sum(action.num_tokens for action in migrations if action.target == instance.id)
        require(
            instance.used == used[instance.id] + arriving and 0 <= instance.used <= instance.capacity,
            "instance %s: %s of %s slots used, but requests refer to %s and %s arrive",
            instance.id, instance.used, instance.capacity, used[instance.id], arriving,
        )
        require(
            instance.cached == cached[instance.id] and instance.vacant >= 0,
            "instance %s: %s slots cached, not %s; %s are vacant",
            instance.id, instance.cached, cached[instance.id], instance.vacant,
        )


def prefixes_are_sound(ledger: Ledger) -> None:
    """The tree of prefixes, its index and the requests that refer to it agree; nobody refers to what is gone."""
    check_prefixes(ledger.prefixes, ledger.placement, ledger.requests.keys())


def every_token_has_one_owner(ledger: Ledger) -> None:
    """Ranges are in order, without overlap, merged, and cover exactly computed + scheduled tokens; between them lacks
    what is to be repaired, or was, before the request ended."""
    for request in ledger.requests.values():
        position, previous, counts, gaps = 0, None, Counter[int](), set[int]()
        for piece in ledger.placement.ranges(request.id):
            require(position <= piece.start < piece.end, "request %s: %s is out of place", request.id, piece)
            adjacent = piece.start == position
            require(not adjacent or piece.instance != previous, "request %s: %s should be merged", request.id, piece)
            gaps.update(range(position, piece.start))
            position, previous = piece.end, piece.instance
            counts[piece.instance] += piece.length
        require(
            sum(counts.values()) == request.num_stored,
            "request %s: KV of %s, but %s computed or scheduled", request.id, counts, request.num_stored,
        )
        if request.id in ledger.placement and request.status is not RequestStatus.DRAINING:
            end = ledger.placement.own[request.id].end
            gaps.update(range(position, end))
            ranges = [*[(piece.start, piece.end) for piece in request.repairs], *request.awaited]
            lost = {token for start, stop in ranges for token in range(start, stop)}
            require(gaps == lost and end == request.num_kept, "request %s: %s lack, not %s", request.id, gaps, lost)
        require(dict(counts) == ledger.placement.counts(request.id), "request %s: wrong counts", request.id)
        require(tuple(sorted(counts)) == ledger.placement.holders(request.id), "wrong holders")
        require(tuple(sorted(counts.items())) == ledger.placement.context(request.id), "wrong context")


def work_names_its_residence(ledger: Ledger) -> None:
    """Work in flight refers to the residences of its requests, each of which writes one that no other writes."""
    numbers = [residence.number for residence in ledger.placement.residences()]
    require(len(set(numbers)) == len(numbers), "residences share a number: %s", numbers)
    moves = [work.action for work in ledger.migrations.values()]
    named_by: list[Segment | MigrateKV] = [action for action in moves if action.request_id]
    held = {(number, action.migration_id): end for action in moves if not action.request_id
            for number, end in action.chain}  # fmt: skip
    carried = {(node.number, number): end for node in ledger.prefixes.nodes.values()
               for number, end in node.carried.items()}  # fmt: skip
    is_kept = held.keys() == carried.keys() and all([carried[each] >= end for each, end in held.items()])
    require(is_kept, "cached tokens move: %s, but %s are kept for that", held, carried)
    repairs = [each for work in ledger.batches.values() if work.is_repair for each in work.action.segments]
    for work in ledger.batches.values():
        named_by += work.action.segments
    for named in named_by:
        own = ledger.placement.own.get(named.request_id)
        earlier, place = ledger.placement.earlier(named.request_id), len(named.earlier)
        numbers = [*[number for number, _ in earlier], -1 if own is None else own.number]
        is_right = named.residence == numbers[place] and named.earlier == earlier[:place]
        require(is_right and (place == len(earlier) or named in repairs), "%s: its residences", named)


def instances_run_one_batch(ledger: Ledger) -> None:
    """Work runs on all of its instances and nowhere else; a queued batch is behind one of its group."""
    in_flight: list[AnyWork] = [*ledger.batches.values(), *ledger.migrations.values()]
    for instance in ledger.cluster.instances:
        fits = len(instance.later) <= instance.most_in_flight
        require(fits, "instance %s: too many batches in later stages", instance.id)
        for work in (instance.running, instance.queued, *instance.later):
            if work is not None:
                require(work in in_flight, "instance %s runs what is not in flight", instance.id)
                require(instance.id in work.instances, "instance %s runs another group's work", instance.id)
        if instance.queued is not None:
            require(
                instance.running is not None
                and instance.running.is_decode
                and instance.queued.instances == instance.running.instances,
                "instance %s: the queued batch is not behind a decode of its own group", instance.id,
            )
    for work in in_flight:
        places = {_slot(ledger.cluster[number], work) for number in work.instances}
        require(places in ({"running"}, {"queued"}, {"later"}), "%s is %s on its instances", work.action, places)


def instances_are_at_hand(ledger: Ledger) -> None:
    """The cluster's lists have exactly the instances that they are about, by number."""
    cluster = ledger.cluster
    idle = [instance for instance in cluster.instances if instance.is_idle]
    require(cluster.idle() == idle, "others are idle")
    require(cluster.idle_numbers == {i.id for i in idle}, "others are idle by number")
    require(cluster.resting() == [i for i in idle if i.ready or i.flowing], "others are at rest")
    require(cluster.decoding() == [i for i in cluster.instances if i.is_decoding], "others decode")
    require(all(cluster[number] in cluster.instances for number in cluster.idle_numbers), "lost ones are idle")
    engaged = {i.id for i in cluster.instances if not i.is_idle and not i.is_decoding}
    require(cluster.engaged == engaged, "others are engaged")


def counts_in_flight_are_right(ledger: Ledger) -> None:
    """Batches and migrations refer to living requests, which know it."""
    batches: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    for work in ledger.batches.values():
        for segment in work.action.segments:
            require(segment.request_id in ledger.requests, "a batch refers to ended %s", segment.request_id)
            batches[segment.request_id] += 1
            tokens[segment.request_id] += segment.length
            for other, length in ledger.others_of(segment) if work.is_repair else ():
                tokens[other.id] += length
    migrating = {work.action.request_id for work in ledger.migrations.values()} - {""}
    for request in ledger.requests.values():
        require(
            (request.in_flight, request.num_scheduled) == (batches[request.id], tokens[request.id]),
            "request %s is in %s batches in flight, not %s", request.id, batches[request.id], request.in_flight,
        )
        touched = request.in_flight > 0 or request.id in migrating or request.id in ledger.parted
        require(
            touched or request.status not in (RequestStatus.MIGRATING, RequestStatus.DRAINING),
            "request %s is %s, but nothing touches it", request.id, request.status.value,
        )
    moving = {name for name, request in ledger.requests.items() if request.status is RequestStatus.MIGRATING}
    require(moving - migrating == ledger.parted.keys(), "others than %s have yet to move", ledger.parted.keys())
    require(migrating <= ledger.requests.keys(), "migrations refer to ended %s", migrating)


def nothing_refers_to_the_ended(ledger: Ledger) -> None:
    for request_id in ledger.placement:
        require(request_id in ledger.requests, "ended request %s holds KV", request_id)
    for request in ledger.requests.values():
        require(request.status is not RequestStatus.ENDED, "ended request %s is kept", request.id)


def growth_adds_up(ledger: Ledger) -> None:
    """The tokens when grown are those of exactly the requests that hold KV."""
    grown = sum(ledger.requests[request_id].tokens_when_grown for request_id in ledger.placement)
    require(ledger.tokens_when_grown == grown, "those with KV may grow to %s, not %s", grown, ledger.tokens_when_grown)


def the_queue_is_in_order(ledger: Ledger) -> None:
    """The queue holds exactly the waiting requests, by arrival; they have no KV."""
    queued = list(ledger.waiting)
    indices = [request.arrival_index for request in queued]
    require(indices == sorted(set(indices)), "the queue is out of order: %s", indices)
    waiting = [request for request in ledger.requests.values() if request.status is RequestStatus.WAITING]
    aside = list(ledger.waiting.aside.values())
    require(len(waiting) == len(queued) + len(aside), "the queue does not hold exactly the waiting requests")
    fits = [request.id for request in queued if not ledger.fits(request)]
    require(not fits and not any(map(ledger.fits, aside)), "others are aside: %s do not fit", fits)
    for request in (*queued, *aside):
        require(
            request.status is RequestStatus.WAITING and request.num_stored == 0 and request.in_flight == 0,
            "request %s waits, but is %s with %s tokens", request.id, request.status.value, request.num_stored,
        )


def ready_lists_are_right(ledger: Ledger) -> None:
    """Exactly the ready requests are listed, wherever they hold KV, in order of readiness."""
    listed: Counter[str] = Counter()
    for instance in ledger.cluster.instances:
        orders = [request.ready_order for request in instance.ready.values()]
        require(orders == sorted(orders), "instance %s: the ready are out of order", instance.id)
        for request_id in instance.ready:
            require(instance.id in ledger.placement.holders(request_id), "%s holds nothing there", request_id)
            listed[request_id] += 1
    for request in ledger.requests.values():
        expected = len(ledger.placement.holders(request.id)) if request.is_ready else 0
        require(listed[request.id] == expected, "request %s is not listed where it is ready", request.id)
    decodes = {one.id for one in ledger.requests.values() if one.is_ready and one.status is RequestStatus.DECODING}
    known, prefills = ledger.cluster.decode_holders, ledger.cluster.ready_prefills.keys()
    require(known == {name: ledger.placement.holders(name) for name in decodes}, "others are ready to decode")
    require(known.keys() == ledger.cluster.ready_decodes.keys() and prefills == listed.keys() - decodes, "others wait")


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
        require(listed.pop(request.id, 0) == expected, "request %s is not listed where it flows", request.id)
        flows = (
            request.status is RequestStatus.PREFILLING
            and request.in_flight > 0
            and request.tokens_to_compute > 0
            and request.id not in first_stages
        )
        require(request.flowing == flows, "request %s flows: %s, which is wrong", request.id, request.flowing)
    require(not listed, "ended requests flow: %s", listed)


INVARIANTS: tuple[Callable[[Ledger], None], ...] = (
    kv_is_conserved,
    prefixes_are_sound,
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
    repairs_are_known,
)


def _slot(instance: Instance, work: AnyWork) -> str:
    if instance.running is work:
        return "running"
    if instance.queued is work:
        return "queued"
    return "later" if any(work is other for other in instance.later) else "nowhere"
