"""Cached tokens that move to another instance: no request refers to them, and they stay what they are.

Or they are copied, and begin a residence of their own there.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from longspan.core.actions import OWN, FreeKV, KVRange, MigrateKV
from longspan.core.books.cluster import Work
from longspan.core.books.ledger import Ledger
from longspan.core.books.migration import enter_migration
from longspan.core.kv.residence import Residence
from longspan.core.prefixes.node import Node

Range = tuple[int, int]
MOST_TOKENS = 8192
"""Of one migration, so that what runs on its instances goes on in between."""


def start_move(
    ledger: Ledger, path: Sequence[Node], source: int, target: int, ranges: Sequence[Range], worth: float
) -> MigrateKV | None:
    """Start to move cached tokens of a prefix between two idle instances: as many of the first as there is room for.

    path: the nodes that have it. ranges: of the tokens that may move, in order. worth: what is worth less at the target
    is evicted for them. Returns None if there is no room at all, or other tokens of the prefix are in the way of what
    is reserved.
    """
    if not ranges:
        return None
    cluster, prefixes = ledger.cluster, ledger.prefixes
    action = along(ledger, path, source, target, ranges)
    prefixes.hold(action)  # so that it makes no room at its own cost
    prefixes.make_room(target, action.num_tokens, worth)
    room = min(cluster[target].vacant, cluster[target].unreserved)
    is_in_the_way = any([instance.unreserved < 0 for instance in cluster.instances])
    prefixes.let_go(action)
    fitting = [] if is_in_the_way else first_of(ranges, room, prefixes.block)
    if not fitting:
        return None
    action = along(ledger, path, source, target, fitting)
    prefixes.hold(action)
    cluster.take(target, action.num_tokens)
    enter_migration(ledger, action)
    return action


def finish_move(ledger: Ledger, work: Work[MigrateKV]) -> None:
    """Note that the tokens are at the target, and cached there."""
    action = work.action
    del ledger.migrations[action.migration_id]
    ledger.cluster.finish(work)
    if action.is_copy:
        _finish_copy(ledger, action)
        return
    for number, ranges in action.parts:
        ledger.prefixes.nodes[number].residence.move(action.source, action.target, ranges)
    ledger.cluster.give_back(action.source, action.num_tokens)
    ledger.prefixes.let_go(action)


def _finish_copy(ledger: Ledger, action: MigrateKV) -> None:
    """Have it found at the target, where it is cached, unless what it goes on from is not there any more."""
    prefixes, ((begin, end),) = ledger.prefixes, action.ranges
    keys, original = prefixes.copies[action.migration_id], prefixes.nodes[action.residence]
    before = [node for node in prefixes.index.nodes_of(keys[0]) if node.reach([action.target], {}) >= begin]
    if begin and not before:
        ledger.cluster.give_back(action.target, action.num_tokens)
        ledger.actions.append(FreeKV(action.into, (action.target,)))
    else:
        residence = Residence(action.into, begin)
        residence.append((KVRange(action.target, begin, end),))
        residence.seal()
        ledger.cluster.keep_cached(action.target, action.num_tokens)
        prefixes.add_copy(residence, before[0] if begin else None, keys[begin > 0 :], original)
    prefixes.let_go(action)


def along(
    ledger: Ledger, path: Sequence[Node], source: int, target: int, ranges: Sequence[Range], into: int = OWN
) -> MigrateKV:
    """Return what moves, or copies, these tokens. path: up to the node where the last of them is, at least."""
    path = [node for node in path if node.residence.begin < ranges[-1][1]]
    earlier = [(node.number, behind.residence.begin) for node, behind in pairwise(path)]
    number = ledger.numbering.migrations
    return MigrateKV(number, "", source, target, tuple(ranges), path[-1].number, tuple(earlier), into)


def first_of(ranges: Sequence[Range], most: int, block: int) -> list[Range]:
    """Return the first of these tokens, no more than so many, up to the end of a block if that is not all of them."""
    fitting: list[Range] = []
    for start, end in ranges:
        if end - start > most:
            end = (start + most) - (start + most) % block
            most = 0
        if start < end:
            fitting.append((start, end))
            most -= end - start if most else 0
        if not most:
            break
    return fitting
