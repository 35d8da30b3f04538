"""The tree of the residences whose tokens have keys: what is known of it, and how parts of it go."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from longspan.core.actions import FreeKV
from longspan.core.books.cluster import Cluster
from longspan.core.internal_error import InternalError
from longspan.core.kv.residence import Residence
from longspan.core.prefixes.eviction import EvictionOrder
from longspan.core.prefixes.index import PrefixIndex
from longspan.core.prefixes.node import Node


class PrefixTree:
    """Its nodes, by the numbers of their residences, and the index of their keys.

    Where tokens of a residence are lost, its blocks from there on are *hidden*, and so is what goes on from them: found
    by nobody until all are there again. What is hidden and used by no request has no gaps.

    order: what is evicted first.
    """

    def __init__(
        self, block: int, cluster: Cluster, emit: Callable[[FreeKV], object], seconds: Callable[[int], float]
    ) -> None:
        """block: tokens for each key. emit: takes what is freed. seconds: what a token at this position takes."""
        self.block = block
        self.nodes: dict[int, Node] = {}
        self.index = PrefixIndex(block)
        self.order = EvictionOrder(self.nodes, seconds, lambda: cluster.total_capacity)
        self._cluster = cluster
        self._emit = emit

    def add_copy(self, residence: Residence, before: Node | None, keys: list[bytes], original: Node) -> None:
        """Make a copy known that is cached on one instance. before: the node that it goes on from there."""
        node = self.nodes[residence.number] = Node(residence, before, original.author)
        node.writer, node.keys, node.uses = None, keys, original.uses
        if before is not None:
            before.children[residence.number] = node
        self.index.add(keys, node)
        self.order.renew(node)

    def lose(self, instance: int) -> None:
        """Hide what begins with the first block of which this instance, which is lost, holds a token; of that, evict
        what nobody refers to."""
        for node in list(self.nodes.values()):
            if node.number in self.nodes and (held := node.residence.held(instance)):
                self._hide_from(node, held[0][0] - held[0][0] % self.block)

    def reveal(self, number: int, filling: Mapping[int, int]) -> None:
        """Make known again what was hidden of a residence, as far as it is whole, and of those that go on from it.

        filling: by residence, the first position of tokens that are being computed again.
        """
        found = self.nodes.get(number)
        nodes = [] if found is None else [found]
        for node in nodes:  # grows
            above, residence = node.parent, node.residence
            if above is not None and above.known_end(self.block) < residence.begin:
                continue
            missing = residence.missing()[:1] if residence.num_missing else ()
            end = min([*[start for start, _ in missing], filling.get(node.number, residence.end), residence.end])
            num_new = max(0, (end - node.known_end(self.block)) // self.block)
            keys, node.hidden = node.hidden[:num_new], node.hidden[num_new:]
            node.keys += keys
            self.index.add(keys, node)
            nodes += node.children.values()

    def drop_behind_gap(self, node: Node) -> None:
        """Evict what nobody refers to behind the first token that is missing."""
        if node.residence.num_missing:
            first = node.residence.missing()[0][0]
            end = max(first - first % self.block, node.referenced_end)
            self.truncate_behind(node, end)
            self.truncate(node, end)

    def truncate_behind(self, node: Node, end: int) -> None:
        """Evict what goes on from the node beyond this end, as far as nobody refers to it."""
        for child in reversed(self._going_on(node, end)):
            self.truncate(child, max(child.residence.begin, child.referenced_end))

    def truncate(self, node: Node, end: int) -> None:
        """Evict the node's tokens from `end` on."""
        residence = node.residence
        if end == residence.end > residence.begin:
            return
        if end < node.referenced_end:
            raise InternalError(f"residence {node.number} is used up to {node.referenced_end}, and cut at {end}")
        gone = residence.counts_between(end, residence.end)
        for instance, tokens in gone.items():
            self._cluster.evict(instance, tokens)
        is_whole = end == residence.begin
        self._emit(FreeKV(node.number, tuple(gone), () if is_whole else ((end, residence.end),)))
        residence.truncate(end)
        self.forget_blocks(node, (end - residence.begin) // self.block)

    def forget_blocks(self, node: Node, kept: int) -> None:
        """Find no blocks of the node any more beyond the first ones; without any it is no node."""
        self.order.remember(node, kept)
        del node.hidden[max(0, kept - len(node.keys)) :]
        self.index.remove(node.keys[kept:], node)
        del node.keys[kept:]
        if kept:
            self.order.renew(node)
            return
        del self.nodes[node.number]
        parent = node.parent
        if parent is not None:
            del parent.children[node.number]
            if not parent.children:
                self.order.renew(parent)

    def _hide_from(self, node: Node, end: int) -> None:
        self.truncate_behind(node, end)
        self.truncate(node, max(end, node.referenced_end))
        if node.number in self.nodes:
            self._hide(node, (end - node.residence.begin) // self.block)
            for child in self._going_on(node, end):
                self._hide(child, 0)

    def _hide(self, node: Node, kept: int) -> None:
        self.index.remove(node.keys[kept:], node)
        node.hidden[:0] = node.keys[kept:]
        del node.keys[kept:]

    def _going_on(self, node: Node, end: int) -> list[Node]:
        """Those that go on from the node beyond this end, each behind the one that it goes on from."""
        going = [child for child in node.children.values() if child.residence.begin > end]
        for child in going:  # grows
            going += child.children.values()
        return going
