"""Prefixes: what of the KV pool is known by its tokens, which requests refer to it, and what goes for want of slots."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from math import inf

from longspan.core.actions import FreeKV, MigrateKV
from longspan.core.books.cluster import Cluster
from longspan.core.books.request import Request
from longspan.core.costs.cost_model import CostModel
from longspan.core.internal_error import InternalError
from longspan.core.kv.adopted import Adopted
from longspan.core.kv.kv_placement import KVPlacement
from longspan.core.kv.residence import Residence
from longspan.core.prefixes.affordable import affordable
from longspan.core.prefixes.coming import Coming
from longspan.core.prefixes.lookup import Lookup
from longspan.core.prefixes.node import Node
from longspan.core.prefixes.tree import PrefixTree
from longspan.prefix_keys import KEY_BYTES


class PrefixCache(PrefixTree):
    """The tree, and which requests refer to what in it.

    A residence outlives the request that writes it. The whole blocks of it to which no request refers are cached, and
    are evicted when their slots are needed. So slots are used (some request refers to them), cached, or free.

    lookup: what a request finds. coming: what is being computed. adopting: requests that have adopted a prefix in this
    call, and run not yet. copies: by migration that copies a prefix, the keys of its blocks, and before these that of
    the block from which they go on, if there is one.
    """

    def __init__(
        self, block: int, cluster: Cluster, placement: KVPlacement, emit: Callable[[FreeKV], object],
        cost_model: CostModel | None = None,
    ) -> None:  # fmt: skip
        """block: tokens for each key. emit: takes what is freed."""
        super().__init__(
            block, cluster, emit, lambda position: 1.0 if cost_model is None else cost_model.work(1, position, 1)
        )
        self.lookup = Lookup(self.index)
        self.coming = Coming(block)
        self.adopting: dict[str, Request] = {}
        self.copies: dict[int, list[bytes]] = {}
        self._placement = placement

    # who refers to what

    def adopt(
        self, request: Request, instances: Collection[int], rooms: Mapping[int, int] | None = None
    ) -> int:
        """Let a waiting request refer to the longest prefix that these instances hold; returns its tokens.

        rooms: slots that it may use again, by instance; else all that are not reserved. Where they lack, it is shorter.
        """
        found = self.lookup.find(request, instances)
        path = [] if found is None else found[0].path()
        length = 0 if found is None else affordable(path, found[1], rooms or {}, self._cluster, self.block)
        path = [node for node in path if node.residence.begin < length]
        if not path:
            return 0
        ends = [*[node.residence.begin for node in path[1:]], length]
        last = path[-1]
        if last.writer is None and last.residence.end == length:
            self._go_on_in(last, request)
            path.pop()
        for node, end in zip(path, ends, strict=False):
            before = node.referenced_end
            node.lengths[request.id] = end
            self._recount(node, before)
        if path:
            pairs = [(node.residence, end) for node, end in zip(path, ends, strict=False)]
            self._placement.adopted[request.id] = Adopted(pairs)
        request.num_computed = length
        self.adopting[request.id] = request
        return length

    def referrers(self, residence: Residence) -> list[str]:
        """Return the requests that refer to the residence, in the order in which they began to."""
        node = self.nodes.get(residence.number)
        if node is None:
            return []
        return [*node.lengths, *([] if node.writer is None else [node.writer])]

    def is_shared(self, request_id: str) -> bool:
        """Tell whether another request refers to what this one does."""
        return any([len(self.referrers(residence)) > 1 for residence in self._placement.all_of(request_id)])

    # what becomes of a request's KV

    def register(self, request: Request) -> None:
        """Make the blocks known that the request has computed, as far as they have keys."""
        own, keys = self._placement.own[request.id], request.prefix_keys
        node = self.nodes.get(own.number)
        first = own.begin // self.block + (0 if node is None else len(node.keys))
        behind = min(len(keys) // KEY_BYTES, request.num_computed // self.block)
        if first >= behind:
            return
        if node is not None and node.hidden:
            raise InternalError(f"residence {own.number} goes on behind a gap")
        if node is None:
            node = self._new_node(own, request)
        raw = bytes(keys[first * KEY_BYTES : behind * KEY_BYTES])
        new = [raw[place : place + KEY_BYTES] for place in range(0, len(raw), KEY_BYTES)]
        node.keys += new
        if len(node.keys) == len(new):
            self.order.recall(node)
        self.index.add(new, node)

    def release(self, request: Request, is_undone: bool = False) -> None:
        """Let the request refer to nothing any more. Of what it wrote, that which has no key is freed at once.

        is_undone: it only adopted, and did not start.
        """
        self.adopting.pop(request.id, None)
        self.coming.forget(request)
        own, adopted = self._placement.release(request.id)
        if own is not None:
            self._retire(own)
        nodes = [self.nodes[residence.number] for residence, _ in (() if adopted is None else adopted.earlier)]
        for node in reversed(nodes):
            before = node.referenced_end
            del node.lengths[request.id]
            self._recount(node, before)
            self.drop_behind_gap(node)
        nodes = [node for node in nodes if node.number in self.nodes]
        last = None if own is None else self.nodes.get(own.number)
        last = nodes[-1] if last is None and nodes else last
        if last is not None and not is_undone:
            self.order.touch(last)
        if request.is_doubtful:
            own_node = None if own is None else self.nodes.get(own.number)
            for node in reversed([*nodes, *([] if own_node is None else [own_node])]):
                self.truncate(node, self._needed_end(node))

    def hold(self, action: MigrateKV) -> None:
        """Keep cached tokens, and those before them, while some move: all of the last residence, unless copied."""
        for number, end in action.chain:
            node = self.nodes[number]
            before = node.referenced_end
            is_last = number == action.residence and not action.is_copy
            node.carried[action.migration_id] = node.residence.end if is_last else end
            self._recount(node, before)

    def let_go(self, action: MigrateKV) -> None:
        """Note that this is over, or that it is void."""
        self.copies.pop(action.migration_id, None)
        for number, _ in reversed(action.chain):
            node = self.nodes[number]
            before = node.referenced_end
            del node.carried[action.migration_id]
            self._recount(node, before)
            self.drop_behind_gap(node)

    def make_room(self, instance: int, tokens: int, below: float = inf) -> dict[str, int]:
        """Evict until so many slots of the instance are free, if cached ones are there to evict.

        below: only what is worth less; see `EvictionOrder`.
        Returns how many of them were emptied, by who had computed what was in them.
        """
        evicted: dict[str, int] = {}
        lacking = tokens - self._cluster[instance].vacant
        while lacking > 0 and (below == inf or self.order.least(instance) < below):
            if (node := self.order.first(instance)) is None:
                break
            freed = self._evict(node, instance, lacking)
            evicted[node.author] = evicted.get(node.author, 0) + freed
            lacking -= freed
        return evicted

    # the tree

    def _go_on_in(self, node: Node, request: Request) -> None:
        """The request writes on in a residence that nobody writes."""
        before = node.referenced_end
        node.writer = node.author = request.id
        self._recount(node, before)
        node.residence.reopen()
        self._placement.write(request.id, node.residence)

    def _new_node(self, own: Residence, request: Request) -> Node:
        adopted = self._placement.adopted.get(request.id)
        parent = None if adopted is None else self.nodes[adopted.earlier[-1][0].number]
        node = self.nodes[own.number] = Node(own, parent, request.id)
        if parent is not None:
            parent.children[own.number] = node
        return node

    def _recount(self, node: Node, before: int) -> None:
        """Requests refer to the node up to elsewhere than `before`: slots are used that were cached, or the reverse."""
        after = node.referenced_end
        if after > before:
            for instance, tokens in node.residence.counts_between(before, after).items():
                self._cluster.use_cached(instance, tokens)
        elif after < before:
            for instance, tokens in node.residence.counts_between(after, before).items():
                self._cluster.keep_cached(instance, tokens)
            self.order.enlist(node)

    def _retire(self, own: Residence) -> None:
        """Nobody writes the residence any more: whole blocks with keys stay, the rest is freed."""
        node = self.nodes.get(own.number)
        if node is None:
            self._give_back(own.counts)
            self._emit(FreeKV(own.number, own.holders))
            return
        end = own.begin + node.num_blocks * self.block
        if end < own.end:
            rest = own.counts_between(end, own.end)
            self._give_back(rest)
            self._emit(FreeKV(own.number, tuple(rest), ((end, own.end),)))
            own.truncate(end)
        own.seal()
        node.writer = None
        self._recount(node, own.end)
        self.drop_behind_gap(node)
        if node.number in self.nodes:
            self._drop_doubles(node)

    def _drop_doubles(self, node: Node) -> None:
        """Evict the last blocks that other residences have on the same instances."""
        if node.hidden:
            return
        least, end = -1, node.residence.end
        while (start := self._double_from(node, end)) < end:
            if least < 0:
                least = self._needed_end(node)
            end = max(start, least)
            if end == least:
                break
        if end < node.residence.end:
            self.truncate(node, end)

    def _needed_end(self, node: Node) -> int:
        """Return where the tokens end that some request refers to, or another residence goes on from."""
        return max([node.referenced_end, *[child.residence.begin for child in node.children.values()]])

    def _double_from(self, node: Node, end: int) -> int:
        """Return from where on another residence has the blocks up to `end` as well, token by token where this one has
        them; `end` if none has the last."""
        residence = node.residence
        if end == residence.begin:
            return end
        key = node.keys[(end - residence.begin) // self.block - 1]
        others = [other.residence for other in self.index.nodes_of(key) if other is not node]
        start = min([residence.alike_from(other, end) for other in others], default=end)
        return start + -start % self.block

    def _give_back(self, counts: dict[int, int]) -> None:
        for instance, tokens in counts.items():
            self._cluster.give_back(instance, tokens)

    # eviction

    def evict_from(self, node: Node, instance: int) -> None:
        """Evict what is cached of the node on an instance, and what goes on from there."""
        self._evict(node, instance, node.cached()[instance])

    def _evict(self, node: Node, instance: int, lacking: int) -> int:
        """Evict the node's end, and what goes on from there; returns how many slots that frees on the instance."""
        residence = node.residence
        is_here = len(residence.owners) == 1 and residence.holders == (instance,)
        if is_here and not node.children and node.referenced_end == residence.begin:
            tokens = residence.end - residence.begin
            if tokens <= lacking:  # as most are: small, and gone as a whole
                self._cluster.evict(instance, tokens)
                self._emit(FreeKV(node.number, residence.holders))
                self.forget_blocks(node, 0)
                return tokens
        end, before = node.end_without(instance, lacking, self.block), self._cluster[instance].cached
        self.truncate_behind(node, end)
        self.truncate(node, end)
        return before - self._cluster[instance].cached
