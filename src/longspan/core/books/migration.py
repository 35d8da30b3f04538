"""Migrations: KV that moves from one instance to another while its request rests."""

from __future__ import annotations

from longspan.core.actions import MigrateKV
from longspan.core.books.cluster import Work
from longspan.core.books.ledger import Ledger
from longspan.core.books.request import Request, RequestStatus


def start_migration(
    ledger: Ledger, request: Request, source: int, target: int, ranges: tuple[tuple[int, int], ...]
) -> MigrateKV:
    """Start it: the target's slots are taken now, the source's are given back when the migration is done."""
    residence = ledger.placement.own[request.id].number
    earlier = ledger.placement.earlier(request.id)
    action = MigrateKV(ledger.numbering.migrations, request.id, source, target, ranges, residence, earlier)
    ledger.leave_ready(request)
    ledger.parted.pop(request.id, None)
    request.become(RequestStatus.MIGRATING)
    ledger.take(target, action.num_tokens, request.id)
    enter_migration(ledger, action)
    return action


def enter_migration(ledger: Ledger, action: MigrateKV) -> None:
    """Note that it is under way, whatever it moves; its slots at the target are taken already."""
    ledger.numbering.migrations += 1
    ledger.num_migrations += 1
    work = Work(action, (action.source, action.target))
    ledger.cluster.start(work)
    ledger.migrations[action.migration_id] = work
    ledger.actions.append(action)


def finish_migration(ledger: Ledger, work: Work[MigrateKV]) -> Request:
    """Note that the tokens are at the target, for all requests that refer to them."""
    action = work.action
    del ledger.migrations[action.migration_id]
    ledger.cluster.finish(work)
    others = _others(ledger, action)
    was_ready = [other for other in others if other.is_ready]
    was_flowing = [other for other in others if other.flowing]
    for other in was_ready:
        ledger.leave_ready(other)
    for other in was_flowing:
        ledger.cluster.unlist_flowing(other, ledger.placement.holders(other.id))
    ledger.placement.move(action.request_id, action.source, action.target, action.ranges)
    ledger.cluster.give_back(action.source, action.num_tokens)
    request = ledger.requests[action.request_id]
    for each in (request, *others):
        if (adopted := ledger.placement.adopted.get(each.id)) is not None:
            adopted.recount()
        if each.status is not RequestStatus.DRAINING:
            ledger.renew_promise(each, ledger.placement.own[each.id])
    for other in was_flowing:
        ledger.cluster.list_flowing(other, ledger.placement.holders(other.id))
    for other in was_ready:
        if ledger.is_apart(other):
            ledger.part(other)
        else:
            ledger.cluster.list_ready_again(other, ledger.placement.holders(other.id))
    return request


def _others(ledger: Ledger, action: MigrateKV) -> list[Request]:
    """Requests beside the one that moves which refer to some residence of which tokens move."""
    parts = ledger.placement.parts(action.request_id, action.ranges)
    names = dict.fromkeys([name for residence, _ in parts for name in ledger.prefixes.referrers(residence)])
    return [ledger.requests[name] for name in names if name != action.request_id]
