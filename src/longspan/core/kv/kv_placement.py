"""Which instance holds the KV of which tokens of which request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from longspan.core.actions import KVRange, Segment
from longspan.core.books.numbering import Numbering
from longspan.core.internal_error import InternalError
from longspan.core.kv.adopted import Adopted
from longspan.core.kv.residence import Residence


class KVPlacement:
    """Residences, and which request refers to which: to one that it writes, and before it to those that it has adopted.

    A request refers to its residences until it has ended and no batch or migration in flight touches them. Residences
    are numbered in the order in which they begin.

    own: by request, the residence that it writes; only for reading. A request that holds no KV has none. writing: of
    the same requests, numbers that count up as they begin.
    adopted: by request, what it refers to before that; most refer to nothing.
    """

    def __init__(self, numbering: Numbering | None = None) -> None:
        self.own: dict[str, Residence] = {}
        self.adopted: dict[str, Adopted] = {}
        self.writing: dict[str, int] = {}
        self._begun = 0
        self._numbering = Numbering() if numbering is None else numbering

    def __contains__(self, request_id: str) -> bool:
        return request_id in self.own

    def __iter__(self) -> Iterator[str]:
        """Iterate over the requests that hold KV."""
        return iter(self.own)

    def __len__(self) -> int:
        """Return how many requests hold KV."""
        return len(self.own)

    def residences(self) -> Iterator[Residence]:
        return iter(self.own.values())

    def chain(self, request_id: str) -> list[tuple[Residence, int]]:
        """Return the residences that the request refers to, in token order, each with the position up to which."""
        own, adopted = self.own.get(request_id), self.adopted.get(request_id)
        earlier = [] if adopted is None else list(adopted.earlier)
        return earlier if own is None else [*earlier, (own, own.end)]

    def all_of(self, request_id: str) -> list[Residence]:
        """Return the residences that the request refers to, in token order."""
        return [residence for residence, _ in self.chain(request_id)]

    def missing(self, request_id: str) -> list[tuple[int, int]]:
        """Return [start, end) of the tokens that no instance holds, of those that the request refers to."""
        found = []
        for residence, length in self.chain(request_id):
            if residence.num_missing:
                found += [(start, min(end, length)) for start, end in residence.missing() if start < length]
        return found

    def locate(self, request_id: str, position: int) -> tuple[Residence, tuple[tuple[int, int], ...]]:
        """Return the residence with this position among those that the request refers to, and what is before that, as
        `Segment.earlier` has it."""
        before: list[tuple[int, int]] = []
        chain = self.chain(request_id)
        for residence, end in chain[:-1]:
            if position < end:
                return residence, tuple(before)
            before.append((residence.number, end))
        return chain[-1][0], tuple(before)

    def recount(self, request_id: str) -> None:
        """Note that tokens which it has adopted have another owner, or none."""
        if (adopted := self.adopted.get(request_id)) is not None:
            adopted.recount()

    def ranges(self, request_id: str) -> tuple[KVRange, ...]:
        """Return who holds which of the request's tokens, in order; neighbours are merged."""
        residence, adopted = self.own.get(request_id), self.adopted.get(request_id)
        own = () if residence is None else residence.ranges()
        if adopted is None:
            return own
        merged: list[KVRange] = []
        for piece in (*adopted.pieces(), *own):
            if merged and merged[-1].instance == piece.instance and merged[-1].end == piece.start:
                piece = KVRange(piece.instance, merged.pop().start, piece.end)
            merged.append(piece)
        return tuple(merged)

    def held(self, request_id: str, instance: int) -> list[tuple[int, int]]:
        """Return [start, end) of the request's tokens that an instance holds, in order."""
        if request_id in self.adopted:
            return [(piece.start, piece.end) for piece in self.ranges(request_id) if piece.instance == instance]
        residence = self.own.get(request_id)
        return [] if residence is None else residence.held(instance)

    def counts(self, request_id: str) -> dict[int, int]:
        """Return a copy of instance -> tokens; empty for a request without KV."""
        return dict(self.context(request_id))

    def context(self, request_id: str) -> tuple[tuple[int, int], ...]:
        """Return (instance, tokens) by instance, as `Segment.context` has it."""
        residence, adopted = self.own.get(request_id), self.adopted.get(request_id)
        if adopted is not None:
            return adopted.with_own(residence)
        return () if residence is None else residence.context

    def context_before(self, request_id: str, position: int) -> tuple[tuple[int, int], ...]:
        """Return (instance, tokens) by instance of the request's tokens before a position that it refers to."""
        counts: dict[int, int] = {}
        for residence, end in self.chain(request_id):
            for instance, tokens in residence.counts_between(residence.begin, min(position, end)).items():
                counts[instance] = counts.get(instance, 0) + tokens
        return tuple(sorted(counts.items()))

    def earlier(self, request_id: str) -> tuple[tuple[int, int], ...]:
        """Return what the request refers to before its own residence, as `Segment.earlier` has it."""
        adopted = self.adopted.get(request_id)
        return () if adopted is None else adopted.named

    def holders(self, request_id: str) -> tuple[int, ...]:
        residence, adopted = self.own.get(request_id), self.adopted.get(request_id)
        own = () if residence is None else residence.holders
        return own if adopted is None else adopted.holders_with_own(own)

    def holders_of(self, names: Iterable[str]) -> list[tuple[int, ...]]:
        """Return the holders of each of these requests, which have KV of their own."""
        found, own, adopted = list[tuple[int, ...]](), self.own, self.adopted
        for name in names:
            before, holders = adopted.get(name), own[name].holders
            found.append(holders if before is None else before.holders_with_own(holders))
        return found

    def last_holder(self, request_id: str) -> int:
        """Return the instance that holds the newest token."""
        residence = self.own.get(request_id)
        return self.adopted[request_id].pieces()[-1].instance if residence is None else residence.last_holder

    def total(self, instance: int) -> int:
        """Return the tokens on an instance of the residences that requests write. For checks, not for decisions."""
        return sum(residence.counts.get(instance, 0) for residence in self.own.values())

    def add(self, request_id: str, store: Sequence[KVRange]) -> Residence:
        """Store the next tokens of a request, in order from where its KV ends; returns its residence."""
        residence = self.own.get(request_id)
        if residence is None:
            adopted = self.adopted.get(request_id)
            begin = 0 if adopted is None else adopted.length
            residence = Residence(self._numbering.residences, begin)
            self._numbering.residences += 1
            self.write(request_id, residence)
        residence.append(store)
        return residence

    def decode_segment(self, request_id: str, master: int) -> Segment:
        """Return the segment of one more token of a request at `master`, which keeps its KV."""
        residence, adopted = self.own.get(request_id), self.adopted.get(request_id)
        if residence is None:
            raise InternalError(f"request {request_id} holds no KV: it cannot decode")
        start = residence.end
        store = (KVRange(master, start, start + 1),)
        if adopted is None:
            return Segment(request_id, start, 1, (master,), store, residence.context, True, residence.number)
        context = adopted.with_own(residence)
        return Segment(request_id, start, 1, (master,), store, context, True, residence.number, adopted.named)

    def grow(self, names: Sequence[str], masters: Sequence[int], holders: Sequence[tuple[int, ...]]) -> list[Segment]:
        """Store one token more of each of these requests at its master, and return the segments.

        holders: of each, before that. Who has all of a request's tokens has as many of them as there are, so these need
        not be counted.
        """
        segments, alone = list[Segment](), {master: (master,) for master in masters}
        own, adopted = self.own, self.adopted
        for name, master, held_by in zip(names, masters, holders, strict=True):
            residence, before = own[name], adopted.get(name)
            start, earlier = residence.end, () if before is None else before.named
            if len(held_by) == 1:
                context: tuple[tuple[int, int], ...] = ((held_by[0], start),)
            else:
                context = residence.context if before is None else before.with_own(residence)
            store = (KVRange(master, start, start + 1),)
            segments.append(Segment(name, start, 1, alone[master], store, context, True, residence.number, earlier))
            residence.grow(master)
        return segments

    def write(self, request_id: str, residence: Residence) -> None:
        """Let a request that holds no KV write a residence from now on."""
        self.own[request_id] = residence
        self.writing[request_id] = self._begun
        self._begun += 1

    def parts(
        self, request_id: str, ranges: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[Residence, list[tuple[int, int]]]]:
        """Return for each residence of the request which of these ranges, in order, are in it."""
        begin = 0
        for residence, end in self.chain(request_id):
            inside = [(max(low, begin), min(high, end)) for low, high in ranges if low < end and high > begin]
            if inside:
                yield residence, inside
            begin = end

    def move(self, request_id: str, source: int, target: int, ranges: Sequence[tuple[int, int]]) -> None:
        """Give the tokens of `ranges`, all of them at `source`, to `target`."""
        for residence, inside in self.parts(request_id, ranges):
            residence.move(source, target, inside)

    def release(self, request_id: str) -> tuple[Residence | None, Adopted | None]:
        """Let the request refer to nothing any more; returns what it referred to."""
        self.writing.pop(request_id, None)
        return self.own.pop(request_id, None), self.adopted.pop(request_id, None)

    def require_held(self, request_id: str, instance: int, ranges: Sequence[tuple[int, int]]) -> None:
        """Raise unless `ranges` are in order, disjoint, not empty, and all held by `instance`."""
        residence = self.own.get(request_id)
        if residence is None:
            raise InternalError(f"request {request_id} holds no KV")
        if request_id not in self.adopted:
            residence.require_held(instance, ranges)
            return
        inside = 0
        for part, covered in self.parts(request_id, ranges):
            part.require_held(instance, covered)
            inside += sum([end - start for start, end in covered])
        if not ranges or inside != sum([end - start for start, end in ranges]):
            raise InternalError(f"request {request_id}: {ranges} are not in order, or not of its tokens")
