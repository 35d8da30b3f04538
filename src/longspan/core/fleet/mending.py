"""Lost tokens are computed again, beside what the policy runs.

Until a request is whole it is in nobody's hands but these: to the policy it looks as if it were in a batch that takes
long. Then it is as it was. Of each request the lowest missing range is computed first, one chunk of it an iteration, by
the instance that keeps it, together with those that hold what is before it; what is behind it stays as it is.

Streams that have begun are repaired first, for somebody is reading them. Repairs go before all else; but on each
instance the policy has its turn after each of their batches, and other requests' tokens come in between. Of who has no
token yet the policy may say that it comes behind others' prompts: it is repaired on instances that the policy leaves
idle, or after a while.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from msgspec.structs import replace

from longspan.core.actions import KVRange, Segment
from longspan.core.books.ledger import Ledger
from longspan.core.books.request import Request
from longspan.core.fleet.turns import Turns

CHUNK, CHUNK_ALONE = 512, 2048
"""Tokens of one such iteration for each of its instances: while others wait for these, and while nobody does."""
LONG = 8192
"""Who has lost more than so many has them computed as if it were alone, or it would take far longer."""
MOST_WAIT = 64
"""Batches per instance that pass before who may wait has its next chunk all the same."""
PATIENCE = 4
"""Batches per instance that the first request lets pass before it waits for instances that are busy with a prefill."""


class Mending:
    """Issues the batches that repair requests."""

    def __init__(self, ledger: Ledger, turns: Turns) -> None:
        self._ledger = ledger
        self._turns = turns
        self._since: tuple[str, int] | None = None  # the first request, and the batches issued before it was that
        self._waits: dict[str, int] = {}  # batches that had been issued when who may wait had its last chunk
        self._waiting: set[str] = set()  # those of them that do

    def begin(self, may_wait: Callable[[Request], bool] = lambda request: False) -> None:
        """Start what can start now, before the policy is asked, and hold instances for what waits for others.

        may_wait: tells what the policy says of a request that has no token yet.
        """
        self._ledger.cluster.release()
        if not self._ledger.repairing:
            self._since = None
            self._waits.clear()
            return
        self._let_wait(may_wait)
        if not any([instance.is_working for instance in self._ledger.cluster.instances]):
            self._turns.owed.clear()  # a policy may rely upon it that it can start something where nothing runs
        first = self._go_on(self._turns.owed)
        if first is not None:
            self._hold(first)

    def go_on(self) -> None:
        """Start what can start on the instances that the policy leaves idle."""
        if self._ledger.repairing:
            self._waiting.clear()
            self._go_on(frozenset())

    def _go_on(self, owed: Iterable[int]) -> Request | None:
        """Start all that can start; returns the first request that cannot."""
        cluster, first = self._ledger.cluster, None
        for request in self._in_order():
            if not self._is_next(request):
                continue
            if not cluster.idle_numbers:
                return first or request
            needed = self._needed(request)
            if needed <= cluster.idle_numbers and needed.isdisjoint(owed):
                self._run(request, needed)
            elif first is None:
                first = request
        return first

    def _let_wait(self, may_wait: Callable[[Request], bool]) -> None:
        """Settle which requests wait until the policy has had its turn."""
        batches, most = self._ledger.numbering.batches, MOST_WAIT * len(self._ledger.cluster)
        self._waits = {name: since for name, since in self._waits.items() if name in self._ledger.repairing}
        self._waiting.clear()
        for request in self._ledger.repairing.values():
            is_due = batches - self._waits.setdefault(request.id, batches) > most
            if not (request.num_output_tokens or is_due or self._is_awaited(request)) and may_wait(request):
                self._waiting.add(request.id)

    def _is_awaited(self, request: Request) -> bool:
        """Whether others wait for what it repairs."""
        return any([
            start < piece.end and piece.start < end
            for other in self._ledger.repairing.values()
            for start, end in other.awaited
            for piece in request.repairs
        ])  # fmt: skip

    def _in_order(self) -> list[Request]:
        able = [request for name, request in self._ledger.repairing.items() if name not in self._waiting]
        return sorted(able, key=lambda r: (-r.service.priority, r.num_output_tokens == 0, r.arrival_index))

    def _needed(self, request: Request) -> set[int]:
        piece = request.repairs[0]
        context = self._ledger.placement.context_before(request.id, piece.start)
        return {piece.instance, *[instance for instance, _ in context]}

    def _is_next(self, request: Request) -> bool:
        """Whether it has something to repair, and lacks nothing before that which others repair."""
        if request.in_flight or not request.repairs:
            return False
        return not request.awaited or request.awaited[0][0] > request.repairs[0].start

    def _run(self, first: Request, group: set[int]) -> None:
        """Run the first request's next chunk, and those of others that need no other instances."""
        ledger, segments = self._ledger, list[Segment]()
        share = CHUNK_ALONE if first.num_lost > LONG or self._is_alone(group) else CHUNK
        left = min(len(group) * share, ledger.config.max_batch_tokens)
        for request in [first, *[other for other in self._in_order() if other is not first]]:
            if left and self._is_next(request) and self._needed(request) <= group:
                segments.append(self._segment(request, left))
                left -= segments[-1].length
        if len(segments) == 1:
            segments = [self._striped(segments[0])]
        members = {number for each in segments for number in (*each.compute, *[n for n, _ in each.context])}
        self._waits |= {each.request_id: ledger.numbering.batches for each in segments}
        ledger.issue_repair(tuple(sorted(members)), segments)
        self._turns.take(members)

    def _is_alone(self, group: set[int]) -> bool:
        """Tell whether nobody else could run on these instances now."""
        return not self._ledger.waiting and not any([self._ledger.cluster[number].ready for number in group])

    def _striped(self, segment: Segment) -> Segment:
        """Have all that take part in it compute it together, as far as there is enough for each to do."""
        keeper = segment.compute[0]
        size = segment.length // self._ledger.config.min_tokens_per_instance
        others = [number for number, _ in segment.context if number != keeper]
        return replace(segment, compute=(keeper, *others[: max(0, size - 1)]))

    def _segment(self, request: Request, most: int) -> Segment:
        placement, piece = self._ledger.placement, request.repairs[0]
        kept = KVRange(piece.instance, piece.start, min(piece.end, piece.start + most))
        context = placement.context_before(request.id, kept.start)
        residence, earlier = placement.locate(request.id, kept.start)
        return Segment(
            request.id, kept.start, kept.length, (kept.instance,), (kept,), context, False, residence.number, earlier
        )

    def _hold(self, request: Request) -> None:
        """Keep the idle ones of its instances from beginning anything else, if the others soon come back."""
        cluster, batches = self._ledger.cluster, self._ledger.numbering.batches
        if self._since is None or self._since[0] != request.id:
            self._since = request.id, batches
        needed = self._needed(request)
        busy = [cluster[number] for number in needed if number not in cluster.idle_numbers]
        is_patient = batches - self._since[1] <= PATIENCE * len(cluster)
        come_back_soon = not is_patient or all([each.is_decoding for each in busy])
        if busy and needed.isdisjoint(self._turns.owed) and come_back_soon:
            for number in sorted(needed & cluster.idle_numbers):
                cluster.hold(number)
