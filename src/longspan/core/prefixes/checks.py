"""What must hold of the prefixes between any two calls of `Scheduler.handle`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from longspan.core.internal_error import require
from longspan.core.kv.kv_placement import KVPlacement
from longspan.core.prefixes.cache import PrefixCache
from longspan.core.prefixes.node import Node


def check_prefixes(cache: PrefixCache, placement: KVPlacement, alive: Collection[str]) -> None:
    """Raise InternalError unless tree, index and references agree. alive: requests that may refer to something."""
    require(not cache.adopting, "a waiting request refers to a prefix")
    known: Counter[bytes] = Counter()
    for node in cache.nodes.values():
        _check_node(cache, node)
        known.update(node.keys)
        for key in node.keys:
            require(node in cache.index.nodes_of(key), "residence %s is not found by a key", node.number)
    require(len(cache.index) == len(known), "the index knows other blocks than residences have")
    for node in cache.nodes.values():
        for instance in node.cached():
            require(cache.order.lists(node, instance), "residence %s is never evicted from %s", node.number, instance)
    _check_references(cache, placement, alive)


def _check_node(cache: PrefixCache, node: Node) -> None:
    residence = node.residence
    require(cache.nodes.get(residence.number) is node and node.num_blocks > 0, "residence %s: no node", node.number)
    end = residence.begin + node.num_blocks * cache.block
    first = min([start for start, _ in residence.missing()], default=residence.end)
    require(node.known_end(cache.block) <= first, "residence %s: known behind a gap", node.number)
    last = max([end for _, end in residence.missing()], default=residence.begin)
    require(last <= node.referenced_end, "residence %s: cached with a gap", node.number)
    is_written = node.writer is not None
    require(end == residence.end or (is_written and end < residence.end), "residence %s: wrong keys", node.number)
    require(residence.sealed != is_written, "residence %s: it is written, or sealed", node.number)
    require(residence.begin <= node.referenced_end <= residence.end, "residence %s: referred to beyond", node.number)
    begin = residence.begin
    counts: Counter[int] = Counter()
    path = node.path()
    for each, until in zip(path, [*[after.residence.begin for after in path[1:]], residence.end], strict=True):
        counts.update(each.residence.counts_between(each.residence.begin, until))
    require(node.held(residence.end) == counts, "residence %s: its prefix is counted where it was", node.number)
    if node.parent is None:
        require(begin == 0, "residence %s begins at %s, behind none", node.number, begin)
    else:
        above = node.parent
        require(above.children.get(node.number) is node, "residence %s: unknown to the one before it", node.number)
        require(above.residence.begin < begin <= above.residence.end, "residence %s: behind a gap", node.number)
        used = node.referenced_end > begin
        require(not used or above.referenced_end >= begin, "residence %s: what it goes on from is unused", node.number)


def _check_references(cache: PrefixCache, placement: KVPlacement, alive: Collection[str]) -> None:
    referring = {(node.number, name): end for node in cache.nodes.values() for name, end in node.lengths.items()}
    expected = {
        (residence.number, name): end
        for name, adopted in placement.adopted.items()
        for residence, end in adopted.earlier
    }
    require(referring == expected, "requests refer to other prefixes than they have adopted")
    for name, adopted in placement.adopted.items():
        require(name in alive, "ended request %s refers to a prefix", name)
        position = 0
        for residence, end in adopted.earlier:
            require(residence.begin == position < end <= residence.end, "request %s: gaps in what it adopted", name)
            position = end
        own = placement.own.get(name)
        require(own is not None and own.begin == position == adopted.length, "request %s goes on elsewhere", name)
    for node in cache.nodes.values():
        require(
            node.writer is None or placement.own.get(node.writer) is node.residence,
            "residence %s is written by %s, which writes another", node.number, node.writer,
        )
