"""What a request adopts: tokens' KV in residences that others have written."""

from __future__ import annotations

from collections.abc import Sequence

from longspan.core.actions import KVRange
from longspan.core.kv.residence import Residence


class Adopted:
    """The residences that a request refers to before its own, in token order, each up to a length.

    length: where they end, and its own residence begins. named: as `Segment.earlier` has it. counts: tokens by
    instance.
    """

    __slots__ = (
        "_above", "_at", "_below", "_holders", "_own_holders", "_together", "_tokens", "counts", "earlier", "length",
        "named",
    )  # fmt: skip

    def __init__(self, earlier: Sequence[tuple[Residence, int]]) -> None:
        self.earlier = tuple(earlier)
        self.length = self.earlier[-1][1]
        self.named = tuple([(residence.number, length) for residence, length in self.earlier])
        self.counts: dict[int, int] = {}
        self._together: tuple[tuple[int, int], ...] = ()
        self._own_holders: tuple[int, ...] | None = None
        self._holders: tuple[int, ...] = ()
        self._at: int | None = None
        self._tokens = -1
        self._below: tuple[tuple[int, int], ...] = ()
        self._above: tuple[tuple[int, int], ...] = ()
        self.recount()

    def recount(self) -> None:
        """Count anew, since tokens have moved."""
        counts: dict[int, int] = {}
        for piece in self.pieces():
            counts[piece.instance] = counts.get(piece.instance, 0) + piece.length
        self.counts = counts
        self._own_holders = self._at = None

    def pieces(self) -> list[KVRange]:
        """Return who holds which tokens, in order; neighbours of one instance may be apart."""
        return [piece for residence, length in self.earlier for piece in residence.between(residence.begin, length)]

    def holders_with_own(self, own: tuple[int, ...]) -> tuple[int, ...]:
        """Return the instances that hold something, together with those of the request's own residence."""
        if own is not self._own_holders:
            self._own_holders = own
            self._holders = tuple(sorted({*self.counts, *own}))
        return self._holders

    def with_own(self, own: Residence | None) -> tuple[tuple[int, int], ...]:
        """Return (instance, tokens) by instance, together with the context of the request's own residence."""
        counts = {} if own is None else own.counts
        if len(counts) == 1:  # as nearly all are, and it grows token by token
            ((instance, tokens),) = counts.items()
            if instance != self._at:
                pieces = sorted(self.counts.items())
                self._below = tuple([piece for piece in pieces if piece[0] < instance])
                self._above = tuple([piece for piece in pieces if piece[0] > instance])
                self._at, self._tokens = instance, -1
            if tokens != self._tokens:
                self._tokens = tokens
                self._together = (*self._below, (instance, self.counts.get(instance, 0) + tokens), *self._above)
            return self._together
        together = dict(self.counts)
        for instance, tokens in counts.items():
            together[instance] = together.get(instance, 0) + tokens
        return tuple(sorted(together.items()))
