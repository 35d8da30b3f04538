"""Lost tokens that are computed again: which request has each range computed, and who waits for that.

A range that several requests refer to is one request's to repair: of who writes it, or else of the first. For the
others it is awaited.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter

from longspan.config import SchedulerConfig
from longspan.core.actions import KVRange, RunBatch, Segment
from longspan.core.books.claims.claims import Claims
from longspan.core.books.cluster import Cluster, Work
from longspan.core.books.request import Request, RequestStatus
from longspan.core.kv.kv_placement import KVPlacement
from longspan.core.kv.residence import Residence
from longspan.core.prefixes.cache import PrefixCache

_START = attrgetter("start")


def filling(batches: Iterable[Work[RunBatch]]) -> dict[int, int]:
    """Return by residence from where on tokens of it are being computed again, by these batches."""
    repairs = [segment for work in batches if work.is_repair for segment in work.action.segments]
    return {segment.residence: segment.start for segment in sorted(repairs, key=_START, reverse=True)}


class Repairs(Claims):
    """The part of the books that keeps account of them.

    prefixes: what is known by its tokens. requests: all that are alive, by id. repairing: those that lack tokens which
    are to be computed again, by id.
    """

    def __init__(
        self, config: SchedulerConfig, cluster: Cluster, placement: KVPlacement, prefixes: PrefixCache
    ) -> None:
        super().__init__(config, cluster, placement)
        self.prefixes = prefixes
        self.requests: dict[str, Request] = {}
        self.repairing: dict[str, Request] = {}

    def sharers(self, residence: Residence) -> list[tuple[Request, int]]:
        """Return the requests that refer to a residence whose tokens have keys, each with the position up to which: who
        writes it, then open streams, then by arrival."""
        node = self.prefixes.nodes.get(residence.number)
        if node is None:
            return []
        found = [(self.requests[name], end) for name, end in node.lengths.items()]
        found.sort(key=lambda pair: (pair[0].num_output_tokens == 0, pair[0].arrival_index))
        return found if node.writer is None else [(self.requests[node.writer], residence.end), *found]

    def share_out(self, residence: Residence, planned: Iterable[KVRange], able: Sequence[tuple[Request, int]]) -> None:
        """Give these missing tokens to who repairs them: each to the first who refers to it, if anybody does.

        able: requests with the positions up to which they refer to the residence.
        """
        for piece in planned:
            start = piece.start
            while start < piece.end and (heir := next((pair for pair in able if pair[1] > start), None)) is not None:
                request, length = heir
                part = KVRange(piece.instance, start, min(piece.end, length))
                self.set_repairs(request, tuple(sorted([*request.repairs, part], key=_START)))
                start = part.end
        for request, _ in able:
            self.renew_awaited(request)

    def hand_over(self, request: Request) -> None:
        """Have others who need it repair what this request was to, since it ends or begins again."""
        pieces = request.repairs
        self.set_repairs(request, ())
        request.awaited = ()
        for piece in pieces:
            residence, _ = self.placement.locate(request.id, piece.start)
            others = [pair for pair in self.sharers(residence) if pair[0] is not request]
            able = [pair for pair in others if pair[0].status is not RequestStatus.DRAINING]
            self.share_out(residence, [piece], able)

    def renew_awaited(self, request: Request) -> None:
        """Note anew what the request lacks that it does not repair."""
        missing, awaited = self.placement.missing(request.id), list[tuple[int, int]]()
        for start, end in missing:
            for piece in request.repairs:
                if start < piece.end and piece.start < end:
                    if start < piece.start:
                        awaited.append((start, piece.start))
                    start = piece.end
            if start < end:
                awaited.append((start, end))
        request.awaited = tuple(awaited)

    def others_of(self, segment: Segment) -> list[tuple[Request, int]]:
        """Return the other requests that refer to tokens of this repair, and to how many."""
        residence, _ = self.placement.locate(segment.request_id, segment.start)
        return [
            (other, min(segment.end, end) - segment.start)
            for other, end in self.sharers(residence)
            if other.id != segment.request_id and end > segment.start
        ]

    def fill(self, segment: Segment) -> None:
        """Note that a batch takes slots for the first of the lost tokens that a request is to repair."""
        request, (kept,) = self.requests[segment.request_id], segment.store
        first, *rest = request.repairs
        left = [KVRange(first.instance, kept.end, first.end)] if kept.end < first.end else []
        self.set_repairs(request, (*left, *rest))
        request.in_flight += 1
        request.num_scheduled += segment.length
        residence, _ = self.placement.locate(segment.request_id, segment.start)
        residence.fill(kept)
        self.placement.recount(request.id)
        for other, tokens in self.others_of(segment):
            other.num_scheduled += tokens
            self.placement.recount(other.id)
            self.renew_awaited(other)

    def unfill(self, segment: Segment) -> None:
        """Note that it has come to nothing."""
        residence, _ = self.placement.locate(segment.request_id, segment.start)
        for kept in segment.store:
            residence.forget(kept)
        for other, tokens in self.others_of(segment):
            other.num_scheduled -= tokens

    def finish_repairs(self, segments: Iterable[Segment], filling: Mapping[int, int]) -> None:
        """Note that these are through. filling: see `PrefixTree.reveal`."""
        for segment in segments:
            self._settle(segment, filling)
        self.note_repairs()

    def _settle(self, segment: Segment, filling: Mapping[int, int]) -> None:
        """Note that a repair is through. filling: see `PrefixTree.reveal`."""
        for other, tokens in self.others_of(segment):
            other.num_scheduled -= tokens
            other.num_computed += tokens
        self.prefixes.reveal(segment.residence, filling)

    def note_repairs(self) -> None:
        """Note from where on prefixes are being computed again, so that who begins with one can wait for that."""
        for request in self.repairing.values():
            if request.prefix_keys:
                found = self.prefixes.index.longest(request.prefix_keys, request.num_tokens)
                self.prefixes.coming.note(request, 0 if found is None else found[1])

    def whole(self) -> list[Request]:
        """Return the requests that lack nothing any more."""
        return [
            request
            for request in self.repairing.values()
            if not (request.repairs or request.awaited or request.in_flight or request.num_scheduled)
        ]
