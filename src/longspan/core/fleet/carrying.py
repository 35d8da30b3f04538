"""What is cached on an instance that leaves moves to others, as far as they have room, or keep what is worth less.

What is worth most goes first, and what a prefix begins with before what goes on from it. What others have already, or
have no room for, is evicted.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import product
from math import inf

from longspan.core.actions import MigrateKV
from longspan.core.books.instance import Instance
from longspan.core.books.ledger import Ledger
from longspan.core.prefixes.moving import MOST_TOKENS, Range, first_of, start_move
from longspan.core.prefixes.node import Node


class Carrying:
    """Moves it, one migration at a time for each instance."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._left: dict[int, list[int]] = {}  # by instance, what was cached there when this was made, the dearest last

    def advance(self, leaving: Instance, owed: Collection[int]) -> MigrateKV | None:
        """Start a migration from an idle instance, if one can start now, and return it.

        owed: instances that others have yet to have their turn on.
        """
        prefixes = self._ledger.prefixes
        while leaving.cached and (node := self._next(leaving)) is not None:
            path = self._with_what_follows(node, leaving.id)
            if self._is_elsewhere(path[-1]):
                prefixes.evict_from(path[-1], leaving.id)
                continue
            before = _held_before(path, _cached(path, leaving.id)[0][0])
            if self._ledger.keeps_on_one_instance and leaving.id in before:
                return None  # it follows those that refer to what is before it
            for may_evict, target in product((False, True), self._targets(path, leaving.id, before, owed)):
                if target.vacant < prefixes.block and not may_evict:
                    continue
                if not target.is_idle or target.id in owed:
                    return None
                if (move := self._start(path, leaving.id, target.id, may_evict)) is not None:
                    return move
                if (move := self._start(node.path(), leaving.id, target.id, may_evict)) is not None:  # it is worth most
                    return move
            prefixes.evict_from(node, leaving.id)
        return None

    def _start(self, path: list[Node], source: int, target: int, may_evict: bool) -> MigrateKV | None:
        ranges = first_of(_cached(path, source), MOST_TOKENS, self._ledger.prefixes.block)
        return start_move(self._ledger, path, source, target, ranges, path[-1].priority if may_evict else -inf)

    def give_up(self, leaving: Instance) -> None:
        """Evict all that is still cached there."""
        if leaving.cached:
            self._ledger.prefixes.make_room(leaving.id, leaving.vacant + leaving.cached)

    def _next(self, leaving: Instance) -> Node | None:
        """Return the dearest of what is cached there."""
        nodes, left = self._ledger.prefixes.nodes, self._left.setdefault(leaving.id, [])
        for _ in range(2):
            while left:
                node = nodes.get(left[-1])
                if node is not None and leaving.id in node.cached():
                    return node
                left.pop()
            cached = [node for node in nodes.values() if leaving.id in node.cached()]
            cached.sort(key=lambda node: (node.priority, -node.residence.begin, -node.number))
            left += [node.number for node in cached]
        return None

    def _with_what_follows(self, node: Node, instance: int) -> list[Node]:
        """Return the path to a node, and on to what goes on from it there, as far as that may move at once."""
        path = node.path()
        while sum([end - start for start, end in _cached(path, instance)]) < MOST_TOKENS:
            following = [child for child in path[-1].children.values() if instance in child.cached()]
            if not following:
                break
            path.append(max(following, key=lambda child: (child.priority, -child.number)))
        return path

    def _is_elsewhere(self, node: Node) -> bool:
        """Tell whether instances that stay have another copy of all of it, and nothing goes on from this one."""
        if node.children or not node.keys or node.hidden:
            return False
        staying = [each.id for each in self._ledger.cluster.instances if not each.is_leaving]
        places = [[number] for number in staying] if self._ledger.keeps_on_one_instance else [staying]
        others = [other for other in self._ledger.prefixes.index.nodes_of(node.keys[-1]) if other is not node]
        return any([other.reach(allowed, {}) >= node.residence.end for other in others for allowed in places])

    def _targets(
        self, path: list[Node], leaving: int, before: dict[int, int], owed: Collection[int]
    ) -> list[Instance]:
        """Return where it could go: first to who has room for all of it, or what is before it, and nothing to do."""
        tokens = sum([end - start for start, end in _cached(path, leaving)])
        able = [each for each in self._ledger.cluster.instances if not each.is_leaving and each.unreserved > 0]
        if self._ledger.keeps_on_one_instance and before:
            able = [instance for instance in able if before.keys() == {instance.id}]

        def rank(instance: Instance) -> tuple[int, ...]:
            is_free = instance.is_idle and instance.id not in owed
            is_tight = instance.vacant < tokens
            return (is_tight, -before.get(instance.id, 0), not is_free, -instance.vacant, instance.id)

        return sorted(able, key=rank)


def _held_before(path: list[Node], position: int) -> dict[int, int]:
    """Return by instance the tokens of a prefix before a position."""
    node = next(node for node, behind in zip(path, [*path[1:], None], strict=True)
                if behind is None or position <= behind.residence.begin)  # fmt: skip
    return node.held(position)


def _cached(path: list[Node], instance: int) -> list[Range]:
    """Return the cached tokens on an instance of a prefix, in order."""
    found: list[Range] = []
    for node, behind in zip(path, [*path[1:], None], strict=True):
        start = node.referenced_end
        end = node.residence.end if behind is None else behind.residence.begin
        pieces = node.residence.between(start, end) if start < end else []
        found += [(piece.start, piece.end) for piece in pieces if piece.instance == instance]
    return found
