"""A residence in the tree of prefixes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import inf

from longspan.core.kv.residence import Residence


class Node:
    """A residence whose tokens have keys, and its place in the tree.

    number: the residence's. parent: the node whose residence its own goes on from, at `residence.begin`; None at
    position 0. children: those that go on from it, by their numbers.
    keys: of its blocks, in order, the first one ends a block behind `residence.begin`. hidden: of those behind them,
    which nobody finds for the time being.
    writer: the request that appends to it, which refers to all of it. lengths: by request, the length up to which
    others refer to it; carried: by migration of cached tokens, the length up to which it needs it. What is behind the
    longest of them is cached: nobody needs it now. author: who wrote to it last.
    uses: the logarithm of how much it is used. priority, listed: see `EvictionOrder`.
    """

    __slots__ = (
        "_before", "_before_moves", "author", "carried", "children", "hidden", "keys", "lengths", "listed", "number",
        "parent", "priority", "residence", "uses", "writer",
    )  # fmt: skip

    def __init__(self, residence: Residence, parent: Node | None, writer: str) -> None:
        self.residence = residence
        self.number = residence.number
        self.parent = parent
        self.writer: str | None = writer
        self.author = writer
        self.children: dict[int, Node] = {}
        self.keys: list[bytes] = []
        self.hidden: list[bytes] = []
        self.lengths: dict[str, int] = {}
        self.carried: dict[int, int] = {}
        self.uses = self.priority = -inf
        self.listed: dict[int, float] = {}
        self._before: dict[int, int] = {}
        self._before_moves = -1

    @property
    def num_blocks(self) -> int:
        return len(self.keys) + len(self.hidden)

    def known_end(self, block: int) -> int:
        """Return where the blocks end that are found."""
        return self.residence.begin + len(self.keys) * block

    @property
    def referenced_end(self) -> int:
        """Where the tokens end that some request or migration refers to; those behind are cached."""
        if self.writer is not None:
            return self.residence.end
        used = max(self.lengths.values()) if self.lengths else self.residence.begin
        return max(used, *self.carried.values()) if self.carried else used

    def cached(self) -> Mapping[int, int]:
        """Return the tokens that no request refers to, by instance."""
        end, residence = self.referenced_end, self.residence
        return residence.counts if end == residence.begin else residence.counts_between(end, residence.end)

    def end_without(self, instance: int, tokens: int, block: int) -> int:
        """Return where it shall end, so that it gives up so many cached tokens there, or all that are cached.

        block: it ends at a multiple of that.
        """
        for piece in reversed(self.residence.between(self.referenced_end, self.residence.end)):
            if piece.instance == instance:
                if piece.length >= tokens:
                    end = piece.end - tokens
                    return end - end % block
                tokens -= piece.length
        return self.referenced_end

    def path(self) -> list[Node]:
        """Return the nodes from the root to this one."""
        nodes: list[Node] = []
        node: Node | None = self
        while node is not None:
            nodes.append(node)
            node = node.parent
        nodes.reverse()
        return nodes

    def held(self, end: int) -> dict[int, int]:
        """Return by instance the tokens at positions [0, end), which this node and those before it have."""
        residence, before = self.residence, self._counts_before()
        counts = residence.counts if end == residence.end else residence.counts_between(residence.begin, end)
        if not before:
            return dict(counts)
        together = dict(before)
        for instance, tokens in counts.items():
            together[instance] = together.get(instance, 0) + tokens
        return together

    def reach(self, allowed: Collection[int], known: dict[int, int]) -> int:
        """Return how many of the prefix's first tokens are held by these instances, without a gap.

        known: the same of other nodes, by number; what is found is noted in it.
        """
        above: list[Node] = []
        node: Node | None = self
        while node is not None and node.number not in known:
            above.append(node)
            node = node.parent
        reach = 0 if node is None else known[node.number]
        for each in reversed(above):
            if reach >= each.residence.begin:
                reach = _reach_within(each.residence, allowed)
            known[each.number] = reach
        return reach

    def used(self, end: int) -> int:
        """Return how many of the tokens at positions [0, end) some request refers to: the first ones."""
        node: Node | None = self
        while node is not None:
            used = min(node.referenced_end, end)
            if used > node.residence.begin:
                return used
            end = node.residence.begin
            node = node.parent
        return 0

    def _counts_before(self) -> dict[int, int]:
        """By instance, the tokens before its residence. They are counted anew when some of them have moved."""
        moves, pairs, node = 0, list[tuple[Residence, int]](), self
        while node.parent is not None:
            pairs.append((node.parent.residence, node.residence.begin))
            node = node.parent
            moves += node.residence.moves
        if not pairs or moves == self._before_moves:
            return self._before
        counts: dict[int, int] = {}
        for residence, end in reversed(pairs):
            for instance, tokens in residence.counts_between(residence.begin, end).items():
                counts[instance] = counts.get(instance, 0) + tokens
        self._before, self._before_moves = counts, moves
        return counts


def _reach_within(residence: Residence, allowed: Collection[int]) -> int:
    if all([holder in allowed for holder in residence.holders]):
        return residence.end
    for piece in residence.between(residence.begin, residence.end):
        if piece.instance not in allowed:
            return piece.start
    return residence.end
