"""A residence: the KV of a run of tokens, and which instance holds which of them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

from longspan.core.actions import KVRange
from longspan.core.internal_error import InternalError

_NOBODY = -1  # the owner of tokens that are missing


class Residence:
    """The KV of the tokens at positions [begin, end).

    It is append-only while the request that writes it lives, and sealed afterwards. Tokens in it may be missing, since
    the instance that held them was lost or gave them up. It may be split, which moves no slot, and truncated where
    no request refers to the tokens behind. All tokens are of one layer group; today the model's layers are one group.

    owners[i] has the tokens from starts[i] on, up to the next start, or to `end`; neighbours are merged.
    counts: tokens by instance, in that order. holders: its instances.
    moves: how often tokens have got another owner.
    """

    __slots__ = ("_context", "begin", "counts", "end", "holders", "moves", "number", "owners", "sealed", "starts")

    def __init__(self, number: int, begin: int = 0) -> None:
        self.number = number
        self.begin = self.end = begin
        self.owners: list[int] = []
        self.starts: list[int] = []
        self.counts: dict[int, int] = {}
        self.holders: tuple[int, ...] = ()
        self.sealed = False
        self.moves = 0
        self._context: tuple[tuple[int, int], ...] | None = ()

    @property
    def context(self) -> tuple[tuple[int, int], ...]:
        """Return (instance, tokens) by instance, as `Segment.context` has it; the same object until it is another."""
        if self._context is None:
            self._context = tuple(self.counts.items())
        return self._context

    @property
    def last_holder(self) -> int:
        """The instance that holds the newest token."""
        return self.owners[-1]

    def ranges(self) -> tuple[KVRange, ...]:
        """Return the ranges that some instance holds."""
        return tuple([KVRange(*piece) for piece in self._pieces() if piece[0] != _NOBODY])

    def held(self, instance: int) -> list[tuple[int, int]]:
        """Return [start, end) of the tokens that an instance holds, in order."""
        return [(start, end) for owner, start, end in self._pieces() if owner == instance]

    def between(self, start: int, end: int) -> list[KVRange]:
        """Return who holds the tokens at positions [start, end), as far as they are there, in order."""
        return [
            KVRange(owner, max(low, start), min(high, end))
            for owner, low, high in self._pieces()
            if low < end and high > start and owner != _NOBODY
        ]

    def counts_between(self, start: int, end: int) -> dict[int, int]:
        """Return the tokens at positions [start, end) by instance, in that order."""
        if len(self.holders) == len(self.owners) == 1:  # as nearly all are: one instance has all
            tokens = min(end, self.end) - max(start, self.begin)
            return {self.holders[0]: tokens} if tokens > 0 else {}
        counts: dict[int, int] = {}
        for piece in self.between(start, end):
            counts[piece.instance] = counts.get(piece.instance, 0) + piece.length
        return dict(sorted(counts.items())) if len(counts) > 1 else counts

    def alike_from(self, other: Residence, end: int) -> int:
        """Return from where on up to `end` both have their tokens on the same instances; `end` if not even one."""
        low = max(self.begin, other.begin)
        mine, theirs, position = self.between(low, end), other.between(low, end), end
        while mine and theirs:
            one, two = mine[-1], theirs[-1]
            if one.instance != two.instance or one.end < position or two.end < position:
                break
            position = max(one.start, two.start)
            for pieces in (mine, theirs):
                if pieces[-1].start == position:
                    pieces.pop()
        return position

    def missing(self) -> tuple[tuple[int, int], ...]:
        """Return [start, end) of the tokens that no instance holds."""
        return tuple(self.held(_NOBODY))

    @property
    def num_missing(self) -> int:
        """How many of its tokens no instance holds."""
        return self.end - self.begin - sum(self.counts.values())

    def append(self, store: Sequence[KVRange]) -> None:
        """Take in the next tokens, in order from where the residence ends."""
        if self.sealed:
            raise InternalError(f"residence {self.number} is sealed: nothing can be appended")
        owners, counts, end = self.owners, self.counts, self.end
        if len(store) == len(counts) == 1:  # as nearly all are: one instance has all
            owner, behind = store[0].instance, store[0].end
            if owners[-1] == owner and store[0].start == end < behind:
                counts[owner] += behind - end
                self.end = behind
                self._context = None
                return
        num_holders = len(counts)
        for new in store:
            owner, behind = new.instance, new.end
            if new.start != end or behind <= end:
                raise InternalError(f"residence {self.number} ends at {end}: {new} cannot be appended")
            if not owners or owners[-1] != owner:
                owners.append(owner)
                self.starts.append(end)
                counts.setdefault(owner, 0)
            counts[owner] += behind - end
            end = behind
        self.end = end
        if len(counts) > num_holders:
            self.counts = counts = dict(sorted(counts.items()))
            self.holders = tuple(counts)
        self._context = None

    def grow(self, owner: int) -> None:
        """Take in the next token, which this instance holds."""
        counts = self.counts
        if len(counts) == 1 and self.owners[-1] == owner and not self.sealed:  # as nearly always: who has all
            self.end += 1
            counts[owner] += 1
            self._context = None
        else:
            self.append((KVRange(owner, self.end, self.end + 1),))

    def move(self, source: int, target: int, ranges: Sequence[tuple[int, int]]) -> None:
        """Give the tokens of `ranges`, all of them at `source`, to `target`."""
        self.require_held(source, ranges)
        self._assign(target, ranges)

    def lose(self, instance: int) -> None:
        """Note that the instance's tokens are missing from now on."""
        self._assign(_NOBODY, self.held(instance))

    def forget(self, lost: KVRange) -> None:
        """Note that tokens are missing from now on which an instance has, or was to have."""
        self.require_held(lost.instance, [(lost.start, lost.end)])
        self._assign(_NOBODY, [(lost.start, lost.end)])

    def fill(self, new: KVRange) -> None:
        """Give an instance tokens that were missing."""
        if not any(start <= new.start < new.end <= end for start, end in self.missing()):
            raise InternalError(f"residence {self.number}: {new} is not missing")
        self._assign(new.instance, [(new.start, new.end)])

    def seal(self) -> None:
        """Note that its writer has ended: nothing is appended any more."""
        self.sealed = True

    def reopen(self) -> None:
        """Note that another request writes on."""
        self.sealed = False

    def split(self, at: int, number: int) -> Residence:
        """Cut off the tokens from `at` on, as a residence of this number, which the writer goes on to write."""
        if not self.begin < at < self.end:
            raise InternalError(f"residence {self.number} of [{self.begin}, {self.end}) cannot be split at {at}")
        tail = Residence(number, at)
        for owner, start, end in self._pieces():
            if end > at:
                tail.owners.append(owner)
                tail.starts.append(max(start, at))
        tail.end, tail.sealed = self.end, self.sealed
        tail._count()
        self.truncate(at)
        self.seal()
        return tail

    def truncate(self, end: int) -> None:
        """Forget the tokens from `end` on."""
        if not self.begin <= end <= self.end:
            raise InternalError(f"residence {self.number} of [{self.begin}, {self.end}) cannot end at {end}")
        if len(self.holders) == len(self.owners) == 1 and end > self.begin:  # as nearly all are: one instance has all
            (owner,) = self.holders
            self.end, self.counts = end, {owner: end - self.begin}
            self._context = None
            return
        kept = [(owner, start) for owner, start in zip(self.owners, self.starts, strict=True) if start < end]
        self.owners, self.starts = [owner for owner, _ in kept], [start for _, start in kept]
        self.end = end
        self._count()

    def require_held(self, instance: int, ranges: Iterable[tuple[int, int]]) -> None:
        """Raise unless `ranges` are in order, disjoint, not empty, and all held by `instance`."""
        owned = self.held(instance)
        starts = [start for start, _ in owned]
        previous_end = self.begin - 1
        for start, end in ranges:
            if not previous_end <= start < end:
                raise InternalError(f"residence {self.number}: range [{start}, {end}) is empty or out of order")
            place = bisect_right(starts, start) - 1
            if place < 0 or end > owned[place][1]:
                raise InternalError(f"residence {self.number}: [{start}, {end}) is not at instance {instance}")
            previous_end = end
        if previous_end < self.begin:
            raise InternalError(f"residence {self.number}: no ranges to move")

    def _pieces(self) -> Iterator[tuple[int, int, int]]:
        """(owner, start, end) of each stretch with one owner, or none."""
        ends = [*self.starts[1:], self.end] if self.starts else []
        return zip(self.owners, self.starts, ends, strict=True)

    def _assign(self, owner: int, ranges: Iterable[tuple[int, int]]) -> None:
        """Each of the ranges, which are disjoint, lies inside one piece; it gets another owner."""
        pieces = list(_reassigned(self._pieces(), owner, sorted(ranges, reverse=True)))
        self.owners, self.starts = [], []
        for piece_owner, start in pieces:
            if not self.owners or self.owners[-1] != piece_owner:
                self.owners.append(piece_owner)
                self.starts.append(start)
        self.moves += 1
        self._count()

    def _count(self) -> None:
        counts: dict[int, int] = {}
        for owner, start, end in self._pieces():
            if owner != _NOBODY:
                counts[owner] = counts.get(owner, 0) + end - start
        self.counts = dict(sorted(counts.items()))
        self.holders = tuple(self.counts)
        self._context = None


def _reassigned(
    pieces: Iterable[tuple[int, int, int]], target: int, pending: list[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """(owner, start) of the pieces, with the parts in `pending` given to `target`. pending: in reverse order."""
    for owner, position, end in pieces:
        while pending and pending[-1][0] < end:
            start, stop = pending.pop()
            if position < start:
                yield owner, position
            yield target, start
            position = stop
        if position < end:
            yield owner, position
