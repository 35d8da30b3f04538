"""Which residences hold the KV of a prefix, by its key."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from longspan.core.internal_error import InternalError
from longspan.core.prefixes.node import Node
from longspan.prefix_keys import KEY_BYTES

Keys = bytes | bytearray


class PrefixIndex:
    """Key -> the nodes that hold the block that ends there, each with all the tokens before it.

    changes: how often blocks have become known, or have gone.

    Where a block is known, those before it are: a node goes after its children, and a residence loses its last block
    first. So the longest known prefix is found by halves.
    """

    def __init__(self, block: int) -> None:
        self.block = block
        self.changes = 0
        self._nodes: dict[bytes, Node | list[Node]] = {}  # a list where there are several: most blocks are held once

    def __len__(self) -> int:
        """Return how many blocks are known, those that are held twice once."""
        return len(self._nodes)

    def nodes_of(self, key: bytes) -> Sequence[Node]:
        found = self._nodes.get(key, ())
        return (found,) if isinstance(found, Node) else found

    def add(self, keys: Iterable[bytes], node: Node) -> None:
        known = self._nodes
        self.changes += 1
        for key in keys:
            found = known.setdefault(key, node)
            if found is not node:
                known[key] = [*found, node] if isinstance(found, list) else [found, node]

    def remove(self, keys: Iterable[bytes], node: Node) -> None:
        known = self._nodes
        self.changes += 1
        for key in keys:
            found = known.pop(key, None)
            if found is node:
                continue
            if not isinstance(found, list) or node not in found:
                raise InternalError(f"residence {node.number} does not hold the block that it gives up")
            others = [other for other in found if other is not node]
            known[key] = others[0] if len(others) == 1 else others

    def longest(self, keys: Keys, most: int, near: int = 0) -> tuple[Node, int] | None:
        """Return a node, and the length of the longest prefix that it and those before it hold; None if there is none.

        most: tokens that it may have. near: blocks that it probably has. Where that is so, two look-ups find it.
        """
        known, high = self._nodes, min(most // self.block, len(keys) // KEY_BYTES)
        low = min(near, high)
        if low and _key(keys, low) not in known:
            low, high = 0, low - 1
        low = _farthest(low, high, lambda blocks: _key(keys, blocks) in known)
        return None if low == 0 else (self.nodes_of(_key(keys, low))[0], low * self.block)

    def longest_within(self, keys: Keys, most: int, allowed: Collection[int]) -> tuple[Node, int] | None:
        """Return the same of tokens that these instances hold. most: as many as all instances together
        hold, a block at least."""
        reaches: dict[int, int] = {}

        def holder(blocks: int) -> Node | None:
            for node in self.nodes_of(_key(keys, blocks)):
                if node.reach(allowed, reaches) >= blocks * self.block:
                    return node
            return None

        high = most // self.block
        (whole, *_) = self.nodes_of(_key(keys, high))
        low = min(high, whole.reach(allowed, reaches) // self.block)  # others of the same tokens hardly reach farther
        low = _farthest(low, high, lambda blocks: holder(blocks) is not None)
        found = holder(low) if low else None
        return None if found is None else (found, low * self.block)


def _farthest(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """Return the largest number up to `high` that holds; all below it do, too, and `low` does. It is near that."""
    step = 1
    while low < high:  # in strides that double
        tried = min(low + step, high)
        if not holds(tried):
            high = tried - 1
            break
        low, step = tried, 2 * step
    while low < high:
        tried = (low + high + 1) // 2
        low, high = (tried, high) if holds(tried) else (low, tried - 1)
    return low


def _key(keys: Keys, blocks: int) -> bytes:
    return bytes(keys[(blocks - 1) * KEY_BYTES : blocks * KEY_BYTES])
