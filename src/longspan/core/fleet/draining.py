"""Instances that leave are emptied: what requests have there moves to others, one request after the other; then what is
cached there.

Between two of these migrations the policy has its turn on both instances, so decodes go on. What fits nowhere else
stays until it ends; where others take all room as it comes free, it gives up its KV after a while, and begins again.
"""

from __future__ import annotations

from longspan.core.actions import InstanceDrained
from longspan.core.books.instance import Instance
from longspan.core.books.ledger import Ledger
from longspan.core.books.migration import start_migration
from longspan.core.books.request import Request
from longspan.core.fleet.carrying import Carrying
from longspan.core.fleet.families import family_of, is_at_rest, move_whole, slots_of, unite
from longspan.core.fleet.placing import Rooms
from longspan.core.fleet.refitting import refit
from longspan.core.fleet.turns import Turns

PATIENCE = 64
"""Batches per instance that pass without any progress before a request gives up its KV."""


class Draining:
    """Moves KV away, and tells when an instance is empty."""

    def __init__(self, ledger: Ledger, turns: Turns) -> None:
        self._ledger = ledger
        self._turns = turns
        self._carrying = Carrying(ledger)
        self._since: dict[int, int] = {}  # batches that had been issued when something last moved away, by instance

    def begin(self) -> None:
        """Move what can move now, before the policy is asked; let go of who is empty."""
        unite(self._ledger)
        for instance in list(self._ledger.cluster.fleet.leaving):
            if instance.reserved and not self._ledger.keeps_on_one_instance:
                self._plan_elsewhere(instance)
            is_moving = self._move(instance, self._turns.owed)
            if _is_empty(instance):
                self._let_go(instance)
            elif not is_moving:
                self._hold(instance)

    def go_on(self) -> None:
        """Move what can move between instances that the policy leaves idle; let go of those that it has emptied, for
        perhaps nothing happens any more."""
        for instance in list(self._ledger.cluster.fleet.leaving):
            self._move(instance, set())
            if _is_empty(instance):
                self._let_go(instance)

    def _let_go(self, instance: Instance) -> None:
        ledger = self._ledger
        self._since.pop(instance.id, None)
        self._turns.forget(instance.id)
        ledger.cluster.lose(instance.id, returns=True)
        ledger.actions.append(InstanceDrained(instance.id))
        ledger.changes.is_other = True
        refit(ledger)

    def _move(self, instance: Instance, owed: set[int]) -> bool:
        """Start a migration; returns whether it did."""
        ledger = self._ledger
        if not instance.is_idle or instance.id in owed:
            return False
        batches = ledger.numbering.batches
        since = self._since.setdefault(instance.id, batches)
        for request in list(instance.ready.values()):
            target = self._target(request, instance, owed)
            if target is not None and target.is_idle and self._start(request, instance, target):
                self._since[instance.id] = batches
                return True
            if instance.is_held:
                return False  # until others rest
        if (move := self._carrying.advance(instance, owed)) is not None:
            self._turns.take((move.source, move.target))
            self._since[instance.id] = batches
            return True
        if batches - since > PATIENCE * len(ledger.cluster):
            self._since[instance.id] = batches
            self._carrying.give_up(instance)
            self._give_up(instance)
        return False

    def _plan_elsewhere(self, instance: Instance) -> None:
        """Have what is set aside for requests there be set aside elsewhere, as far as others have room."""
        ledger, rooms = self._ledger, Rooms(self._ledger, instance.id)
        for request in [ledger.requests[name] for name in ledger.placement]:
            planned = rooms.replace(request.reserved)
            if planned is not None and planned is not request.reserved:
                ledger.reserve(request, planned)
            planned = rooms.replace(request.repairs)
            if planned is not None and planned is not request.repairs:
                ledger.set_repairs(request, planned)
                ledger.renew_promise(request, ledger.placement.own[request.id])

    def _target(self, request: Request, source: Instance, owed: set[int]) -> Instance | None:
        """Return where the request's KV goes from there: to who holds most of it already, of those with room."""
        ledger = self._ledger
        held = dict(ledger.placement.context(request.id))
        need = slots_of(ledger, family_of(ledger, request), source.id) if ledger.keeps_on_one_instance else 1
        able = [
            instance
            for instance in ledger.cluster.instances
            if not instance.is_leaving and instance.id not in owed and instance.unreserved >= need
        ]
        return max(
            able,
            key=lambda i: (i.is_idle, i.room >= held[source.id], held.get(i.id, 0), i.unreserved, -i.id),
            default=None,
        )

    def _start(self, request: Request, source: Instance, target: Instance) -> bool:
        """Start it; returns whether it did. Where others share the KV, and are to come after it, they have to rest."""
        if not self._ledger.keeps_on_one_instance:
            self._start_what_fits(request, source, target)
        elif is_at_rest(family_of(self._ledger, request)):
            move_whole(self._ledger, request, source.id, target.id)
        else:
            self._ledger.cluster.hold(source.id)  # they are in later stages, and come back
            return False
        self._turns.take((source.id, target.id))
        return True

    def _start_what_fits(self, request: Request, source: Instance, target: Instance) -> None:
        left, ranges = target.unreserved, list[tuple[int, int]]()
        for start, end in self._ledger.placement.held(request.id, source.id):
            end = min(end, start + left)
            if start < end:
                ranges.append((start, end))
                left -= end - start
        start_migration(self._ledger, request, source.id, target.id, tuple(ranges))

    def _hold(self, leaving: Instance) -> None:
        """Have the roomiest other instance wait for the one that leaves, if that comes back soon; or the reverse."""
        cluster = self._ledger.cluster
        others = [each for each in cluster.instances if not each.is_leaving and each.unreserved > 0]
        if not others or leaving.id in self._turns.owed:
            return
        target = max(others, key=lambda instance: (instance.room, -instance.id))
        if target.id in self._turns.owed:
            return
        if target.is_idle and leaving.is_decoding:
            cluster.hold(target.id)
        elif leaving.is_idle and leaving.ready and target.is_decoding:
            cluster.hold(leaving.id)

    def _give_up(self, instance: Instance) -> None:
        ready = list(instance.ready.values())
        if ready and any([not each.is_leaving for each in self._ledger.cluster.instances]):
            request = max(ready, key=lambda request: request.arrival_index)
            if self._ledger.fits(request):
                self._ledger.return_to_queue(request)
                self._ledger.changes.returned.append(request)


def _is_empty(instance: Instance) -> bool:
    held = instance.used or instance.cached or instance.reserved or instance.promised > instance.capacity
    return not held and not instance.in_flight
