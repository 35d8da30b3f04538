"""What a waiting request finds of its tokens' KV, and where."""

from __future__ import annotations

from collections.abc import Collection

from longspan.core.books.request import Request
from longspan.core.prefixes.index import PrefixIndex
from longspan.core.prefixes.node import Node

Found = tuple[Node, int]
"""The node where a prefix ends, and its tokens."""


class Lookup:
    """Looks requests up. It is asked of the same ones again and again, so a request remembers how much was found.

    Of the request that was looked up last it knows all that it has told, until blocks come or go, or `forget` says that
    tokens may have moved: a decision asks several things of each.
    """

    def __init__(self, index: PrefixIndex) -> None:
        self._index = index
        self._last: Request | None = None
        self._changes = 0
        self._found: Found | None = None
        self._within: dict[Collection[int], Found | None] = {}

    def forget(self) -> None:
        self._last = None

    def find(self, request: Request, instances: Collection[int] | None = None) -> Found | None:
        """Return the node where the longest prefix ends that these instances hold, and its tokens; None: all instances
        together. It is never all of the request: the last token is always computed."""
        index = self._index
        if not request.prefix_keys or not len(index):
            request.blocks_found = 0
            return None
        if self._last is not request or self._changes != index.changes:
            found = index.longest(request.prefix_keys, request.num_tokens - 1, request.blocks_found)
            request.blocks_found = 0 if found is None else found[1] // index.block
            self._last, self._changes, self._found = request, index.changes, found
            self._within.clear()
        found = self._found
        if found is None or instances is None:
            return found
        if not isinstance(instances, frozenset):
            return self._find_within(request, found, instances)
        if instances not in self._within:
            self._within[instances] = self._find_within(request, found, instances)
        return self._within[instances]

    def _find_within(self, request: Request, found: Found, instances: Collection[int]) -> Found | None:
        if all([holder in instances for holder in found[0].held(found[1])]):
            return found
        return self._index.longest_within(request.prefix_keys, found[1], instances)

    def longest(self, request: Request, instances: Collection[int] | None = None) -> int:
        """Return how many of a waiting request's tokens these instances have."""
        found = self.find(request, instances)
        return 0 if found is None else found[1]

    def held(self, request: Request, instances: Collection[int] | None = None) -> dict[int, int]:
        """Return by instance the tokens of that prefix."""
        found = self.find(request, instances)
        return {} if found is None else found[0].held(found[1])

    def used(self, request: Request, instances: Collection[int] | None = None) -> int:
        """Return how many tokens of that prefix take no free slot, since other requests refer to them."""
        found = self.find(request, instances)
        return 0 if found is None else found[0].used(found[1])
