"""What requests claim: slots that are promised to them, or set aside, for tokens to come or to be computed again."""

from __future__ import annotations

from longspan.config import SchedulerConfig
from longspan.core.actions import KVRange
from longspan.core.books.cluster import Cluster
from longspan.core.books.fleet import Slots
from longspan.core.books.request import Request, RequestStatus
from longspan.core.kv.kv_placement import KVPlacement
from longspan.core.kv.residence import Residence


class Claims:
    """The part of the books that keeps account of them.

    keeps_on_one_instance: whether the policy does, so that a request can be no longer than one holds.
    parted: requests of such a policy that have KV on several all the same, since what they share with others has moved;
        by id. Until they have moved, too, they are in nobody's hands.
    """

    def __init__(self, config: SchedulerConfig, cluster: Cluster, placement: KVPlacement) -> None:
        self.config = config
        self.cluster = cluster
        self.placement = placement
        self.keeps_on_one_instance = False
        self.parted: dict[str, Request] = {}
        self._reserving: dict[str, Request] = {}

    def with_reservation(self) -> list[Request]:
        """Return the requests that hold KV and have slots reserved, in the order in which they began to hold it."""
        writing = self.placement.writing
        return sorted([one for one in self._reserving.values() if one.id in writing], key=lambda one: writing[one.id])

    def most(self, slots: Slots) -> int:
        """Return the tokens that one request may have on instances with so many slots."""
        return slots.most if self.keeps_on_one_instance else slots.total

    def is_apart(self, request: Request) -> bool:
        """Tell whether its KV is on several instances, though the policy keeps a request on one."""
        return self.keeps_on_one_instance and len(self.placement.holders(request.id)) > 1

    def part(self, request: Request) -> None:
        """Take a request that is apart out of the policy's hands."""
        request.become(RequestStatus.MIGRATING)
        self.parted[request.id] = request

    def fits(self, request: Request) -> bool:
        """Tell whether a waiting request could begin if it were alone on what serves and stays, or never could."""
        fleet = self.cluster.fleet
        if not fleet.is_reduced or request.max_kv_tokens > self.most(fleet.full):
            return True
        return request.num_tokens + self.headroom(request) <= self.most(fleet.open)

    def headroom(self, request: Request) -> int:
        """Return the free slots that a request should find once all its known tokens have KV."""
        return min(request.max_kv_tokens - request.num_tokens, self.config.decode_headroom)

    def reserve(self, request: Request, planned: tuple[KVRange, ...]) -> None:
        """Set slots aside for the request's next tokens, in place of what was reserved for it before."""
        self.set_reservation(request, planned)
        if (residence := self.placement.own.get(request.id)) is not None:
            self.renew_promise(request, residence)

    def drop_claims(self, request: Request) -> None:
        """Promise the request nothing any more, and reserve nothing for it."""
        self.drop_promise(request)
        self.set_reservation(request, ())
        self.set_repairs(request, ())
        request.awaited = ()

    def set_reservation(self, request: Request, planned: tuple[KVRange, ...]) -> None:
        if not planned:
            if not request.reserved:
                return
            del self._reserving[request.id]
        else:
            self._reserving[request.id] = request
        self._exchange(request.reserved, planned)
        request.reserved = planned

    def set_repairs(self, request: Request, planned: tuple[KVRange, ...]) -> None:
        """Set slots aside for tokens that are lost, in place of those that were."""
        if planned or request.repairs:
            self._exchange(request.repairs, planned)
            request.repairs = planned

    def use_reservation(self, request: Request) -> None:
        """The plan begins where the stored tokens end."""
        stored = request.num_stored
        left = [KVRange(r.instance, max(r.start, stored), r.end) for r in request.reserved if r.end > stored]
        self.set_reservation(request, tuple(left))

    def drop_promise(self, request: Request) -> None:
        if request.home is not None:
            self.cluster[request.home].promised -= request.promised
            request.home, request.promised = None, 0

    def renew_promise(self, request: Request, residence: Residence) -> None:
        """Promise slots for tokens behind those stored or planned: where the last is, the next will most likely go."""
        reserved = request.reserved
        if reserved:
            home = reserved[-1].instance
        elif request.repairs and request.repairs[-1].end == residence.end:
            home = request.repairs[-1].instance
        else:
            home = residence.owners[-1]
        left = request.max_kv_tokens - residence.end - (request.num_reserved if reserved else 0)
        promised = min(left, self.config.decode_headroom)
        if home != request.home or promised != request.promised:
            self.drop_promise(request)
            request.home, request.promised = home, promised
            self.cluster[home].promised += promised

    def _exchange(self, before: tuple[KVRange, ...], after: tuple[KVRange, ...]) -> None:
        for old in before:
            self.cluster[old.instance].reserved -= old.length
        for new in after:
            self.cluster[new.instance].reserved += new.length
