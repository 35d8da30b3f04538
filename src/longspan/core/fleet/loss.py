"""An instance is lost: which work is void, what goes on with what it had, and what is to be computed again.

Void is what touches the instance, and what came behind void work on any instance, for instances that do a part of it
would wait for each other in another order. Of a request that loses KV, or a part of whose work is void, all work is:
so it comes to rest, and the tokens that it lacks are known at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from longspan.core.actions import CancelBatch, KVRange, MigrateKV, RunBatch
from longspan.core.books.instance import Work
from longspan.core.books.ledger import Ledger
from longspan.core.books.lifecycle import conclude
from longspan.core.books.request import Request, RequestStatus
from longspan.core.fleet.placing import Rooms
from longspan.core.kv.residence import Residence

AnyWork = Work[RunBatch] | Work[MigrateKV]


def lose_instance(ledger: Ledger, number: int, returns: bool) -> None:
    """Take an instance that serves out of the books, and settle with every request what it goes on from."""
    ledger.losing = number
    void = _void_work(ledger, number)
    _emit_cancel(ledger, void, number)
    names = {name for work in void for name in _requests_of(work)}.union(_names_at(ledger, number), ledger.repairing)
    touched = sorted([ledger.requests[name] for name in names], key=lambda request: request.arrival_index)
    was_ready = {request.id for request in touched if request.is_ready}
    for request in touched:
        ledger.stop_flowing(request)
        ledger.leave_ready(request)
        ledger.drop_promise(request)
    wanted = _undo(ledger, void)
    for request in touched:
        for piece in request.repairs:
            residence, _ = ledger.placement.locate(request.id, piece.start)
            wanted.setdefault(residence.number, []).append(piece)
        ledger.set_repairs(request, ())
        request.awaited = ()
        if request.status is RequestStatus.DRAINING:
            conclude(ledger, request)
    _empty(ledger, number)
    staying = [request for request in touched if request.id in ledger.placement]
    rooms = Rooms(ledger, number)
    for request in staying:
        ledger.placement.recount(request.id)
        if not _can_go_on(ledger, request, rooms):
            give_up(ledger, request)
    _plan_repairs(ledger, rooms, wanted)
    for request in staying:
        if request.id in ledger.placement:
            _settle(ledger, request, request.id in was_ready)
    ledger.note_repairs()
    ledger.cluster.lose(number, returns)
    ledger.losing = None


def give_up(ledger: Ledger, request: Request) -> None:
    """Let a request that nothing touches begin again, for it cannot be repaired."""
    ledger.return_to_queue(request)
    ledger.changes.returned.append(request)


def _void_work(ledger: Ledger, number: int) -> list[AnyWork]:
    """In the order in which it was issued, batches before migrations."""
    void: dict[AnyWork, None] = {}
    found = list(ledger.cluster[number].in_flight)
    of_request = _work_of_requests(ledger)
    for request_id in _names_at(ledger, number):
        found += of_request.get(request_id, ())
    found += [work for work in ledger.batches.values() if work.is_repair]  # who repairs what, is settled anew
    while found:
        work = found.pop()
        if work in void:
            continue
        void[work] = None
        for member in work.instances:
            line = ledger.cluster[member].in_flight
            found += line[line.index(work) + 1 :]
        for request_id in _requests_of(work):
            found += of_request[request_id]
    in_flight: list[AnyWork] = [*ledger.batches.values(), *ledger.migrations.values()]
    return [work for work in in_flight if work in void]


def _work_of_requests(ledger: Ledger) -> dict[str, list[AnyWork]]:
    found: dict[str, list[AnyWork]] = {}
    in_flight: list[AnyWork] = [*ledger.batches.values(), *ledger.migrations.values()]
    for work in in_flight:
        for request_id in _requests_of(work):
            found.setdefault(request_id, []).append(work)
    return found


def _requests_of(work: AnyWork) -> list[str]:
    action = work.action
    if isinstance(action, MigrateKV):
        return [action.request_id] if action.request_id else []
    return [segment.request_id for segment in action.segments]


def _emit_cancel(ledger: Ledger, void: list[AnyWork], number: int) -> None:
    if not void:
        return
    batches = [work.action.batch_id for work in void if isinstance(work.action, RunBatch)]
    migrations = [work.action.migration_id for work in void if isinstance(work.action, MigrateKV)]
    survivors = sorted({member for work in void for member in work.instances if member != number})
    ledger.actions.append(CancelBatch(tuple(batches), tuple(migrations), tuple(survivors)))


def _names_at(ledger: Ledger, number: int) -> list[str]:
    """Requests that have KV there, or are to have some."""
    found = []
    for name in ledger.placement:
        request = ledger.requests[name]
        planned = [each.instance for each in (*request.reserved, *request.repairs)]
        if request.home == number or number in planned or number in ledger.placement.holders(name):
            found.append(name)
    return found


def _undo(ledger: Ledger, void: list[AnyWork]) -> dict[int, list[KVRange]]:
    """Take void work out of the books; returns by residence where its tokens were to be stored."""
    dropped: dict[int, list[KVRange]] = {}
    ledger.cluster.drop(void)
    for work in reversed(void):
        action = work.action
        if isinstance(action, MigrateKV):
            del ledger.migrations[action.migration_id]
            ledger.cluster.give_back(action.target, action.num_tokens)
            if not action.request_id:
                ledger.prefixes.let_go(action)
            continue
        del ledger.batches[action.batch_id]
        if not work.is_repair:
            ledger.changes.void.append(action)
        for segment in reversed(action.segments):
            request = ledger.requests[segment.request_id]
            request.in_flight -= 1
            request.num_scheduled -= segment.length
            ledger.unfill(segment)
            for stored in reversed(segment.store):
                ledger.cluster.give_back(stored.instance, stored.length)
                dropped.setdefault(segment.residence, []).append(stored)
    return dropped


def _empty(ledger: Ledger, number: int) -> None:
    """Let nothing be on the instance any more."""
    ledger.prefixes.lose(number)
    for residence in _residences(ledger):
        if (tokens := residence.counts.get(number, 0)) > 0:
            residence.lose(number)
            ledger.cluster.give_back(number, tokens)


def _residences(ledger: Ledger) -> list[Residence]:
    """In order of their numbers."""
    found = {residence.number: residence for residence in ledger.placement.residences()}
    found |= {number: node.residence for number, node in ledger.prefixes.nodes.items()}
    return [found[number] for number in sorted(found)]


def _can_go_on(ledger: Ledger, request: Request, rooms: Rooms) -> bool:
    """Tell whether a request at rest can go on from what it has, as far as the rest finds room.

    Its last token is left out: whatever computes that also samples the next, and it is for the policy to say when.
    """
    residence = ledger.placement.own[request.id]
    if residence.end >= request.num_tokens:
        residence.truncate(max(residence.begin, request.num_tokens - 1))
    held = sum(ledger.placement.counts(request.id).values())
    request.num_computed = held
    is_cut = len(request.reserved) > 0 and request.reserved[0].start != residence.end
    reserved = () if is_cut else rooms.replace(request.reserved)
    if reserved is None or not held or residence.begin == residence.end:
        return False
    if (ledger.keeps_on_one_instance or not ledger.config.repair_kv) and ledger.placement.missing(request.id):
        return False
    ledger.set_reservation(request, reserved)
    return True


def _plan_repairs(ledger: Ledger, rooms: Rooms, wanted: Mapping[int, Sequence[KVRange]]) -> None:
    """Settle who computes again what, and where it goes; where there is no room, the latest begin again.

    wanted: by residence, where some of its tokens were to go before.
    """
    owners = {residence.number: ledger.requests[name] for name, residence in ledger.placement.own.items()}
    for residence in _residences(ledger):
        while missing := residence.missing():
            able = ledger.sharers(residence)
            owner = owners.get(residence.number)  # none where it is only kept for what moves of what goes on from it
            if not able and owner is not None and owner.id in ledger.placement:
                able = [(owner, residence.end)]
            lacking = [request for request, end in able if end > missing[0][0]]
            if not lacking:
                break
            planned = rooms.plan(residence, wanted.get(residence.number, ()))
            if planned is not None:
                ledger.share_out(residence, planned, able)
                break
            give_up(ledger, max(lacking, key=lambda request: request.arrival_index))


def _settle(ledger: Ledger, request: Request, was_ready: bool) -> None:
    if request.repairs or request.awaited:
        request.become(RequestStatus.REPAIRING)
        ledger.repairing[request.id] = request
        ledger.prefixes.coming.forget(request)
    elif was_ready and request.status is request.resting_status:
        ledger.cluster.list_ready_again(request, ledger.placement.holders(request.id))
    else:
        ledger.make_ready(request)
    ledger.renew_promise(request, ledger.placement.own[request.id])
