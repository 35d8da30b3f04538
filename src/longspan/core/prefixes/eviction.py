"""Which cached tokens go first when slots are needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from heapq import heapify, heappop, heappush, heapreplace
from math import inf, log2

from longspan.core.prefixes.node import Node

_FEW = 64  # entries, which need no tidying
HALF_LIFE = 4.0
"""Turnovers of the pool, after which a use counts half."""
_REMEMBERED = 1 << 16
"""Prefixes that are gone, of whose uses is still known."""
_DEARNESS = 0.5
"""Of the seconds, the power that counts: the ends of long prompts are dearer than their beginnings, and asked for again
less often."""
_LEAST_S = 1e-12


class EvictionOrder:
    """First what is used least often and least lately, and soonest computed again; from the ends of residences.

    A node's priority is the logarithm of the seconds that a token at its end takes to compute again, so it is per slot,
    to the power of `_DEARNESS`, times its uses, of which each counts half after a while (LRFU, Lee et al. 2001). All
    fade alike, so the order stays until the next use; and instead of the uses before, which would fade, each new one
    counts for more. The time goes by turnovers of the pool: by the tokens of the requests that end, over its slots.
    What is evicted is remembered by the key of its first block; so what is asked for again and again is known by that,
    also where the pool is too small to keep it from one use to the next. Nodes with children have no less than these,
    since they go after them.

    A node is listed on each instance where it has cached tokens, with its priority or less: that rises with each use,
    and is listed anew only when the node comes up. So a use costs nothing, and an eviction O(log n).
    """

    def __init__(
        self, nodes: Mapping[int, Node], seconds: Callable[[int], float], slots: Callable[[], int] = lambda: 1
    ) -> None:
        """nodes: by the numbers of their residences. seconds: what a token at this position takes. slots: of the
        pool."""
        self._nodes = nodes
        self._seconds = seconds
        self._slots = slots
        self._half_lives = 0.0
        self._gone: dict[bytes, float] = {}
        self._heaps: dict[int, list[tuple[float, int]]] = {}

    def touch(self, node: Node) -> None:
        """Note that a request that used the node, and those before it, ends now."""
        self._half_lives += node.residence.end / max(1, self._slots()) / HALF_LIFE
        least = node.priority if node.children else -inf
        above: Node | None = node
        while above is not None:
            before, above.uses = above.priority, _sum(above.uses, self._half_lives)
            least = above.priority = max(self._own(above), least)
            if least < before:
                self.enlist(above)
            above = above.parent
            if above is not None:
                least = max(least, above.priority)  # it has other children, perhaps

    def renew(self, node: Node) -> None:
        """Work out the priority anew: the node has lost its last child, or its end."""
        if not node.children:
            node.priority = self._own(node)
        self.enlist(node)

    def remember(self, node: Node, first: int) -> None:
        """Note that the node's blocks from this one on are evicted."""
        if first >= len(node.keys):
            return
        self._gone.pop(node.keys[first], None)
        self._gone[node.keys[first]] = node.uses
        if len(self._gone) > _REMEMBERED:
            del self._gone[next(iter(self._gone))]

    def recall(self, node: Node) -> None:
        """Let a node that begins have the uses of what was evicted of the same tokens."""
        node.uses = _sum(node.uses, self._gone.pop(node.keys[0], -inf))

    def enlist(self, node: Node) -> None:
        """List the node wherever it has cached tokens."""
        for instance in node.cached():
            if node.priority < node.listed.get(instance, inf):
                heap = self._heaps.setdefault(instance, [])
                self._push(heap, node, instance)
                if len(heap) > _FEW + 2 * len(self._nodes):
                    heap[:] = dict.fromkeys([entry for entry in heap if self._is_true(entry, instance)])
                    heapify(heap)

    def lists(self, node: Node, instance: int) -> bool:
        """Tell whether the node comes up there, no later than its priority says. For checks, not for decisions."""
        priority = node.listed.get(instance)
        if priority is None or priority > node.priority:
            return False
        return (priority, node.number) in self._heaps[instance]

    def least(self, instance: int) -> float:
        """Return the priority of what goes first on an instance; infinite if there is nothing."""
        node = self._first(instance)
        return inf if node is None else node.priority

    def first(self, instance: int) -> Node | None:
        """Return what goes first of the nodes with cached tokens on an instance; it is listed there no more."""
        node = self._first(instance)
        if node is not None:
            heappop(self._heaps[instance])
            del node.listed[instance]
        return node

    def _first(self, instance: int) -> Node | None:
        """Bring what goes first there to the top of its heap, with its priority, and return it."""
        heap = self._heaps.get(instance, [])
        while heap:
            entry = heap[0]
            if self._is_true(entry, instance):
                node = self._nodes[entry[1]]
                is_cached = instance in node.cached()
                if is_cached and node.priority == entry[0]:
                    return node
                if is_cached:
                    node.listed[instance] = node.priority
                    heapreplace(heap, (node.priority, node.number))
                    continue
                del node.listed[instance]
            heappop(heap)
        return None

    def _push(self, heap: list[tuple[float, int]], node: Node, instance: int) -> None:
        node.listed[instance] = node.priority
        heappush(heap, (node.priority, node.number))

    def _is_true(self, entry: tuple[float, int], instance: int) -> bool:
        """Tell whether the node is listed by this entry: not by a lower one since."""
        node = self._nodes.get(entry[1])
        return node is not None and node.listed.get(instance) == entry[0]

    def _own(self, node: Node) -> float:
        seconds = self._seconds(max(node.residence.begin, node.residence.end - 1))
        return node.uses + _DEARNESS * log2(max(seconds, _LEAST_S))


def _sum(one: float, other: float) -> float:
    """Return log2(2 ** one + 2 ** other)."""
    low, high = min(one, other), max(one, other)
    return high if low == -inf else high + log2(1.0 + 2.0 ** (low - high))
