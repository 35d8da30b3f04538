"""Prefixes that are being computed: who waits for one need not compute it, too."""

from __future__ import annotations

from longspan.core.books.request import Request
from longspan.prefix_keys import KEY_BYTES


class Coming:
    """The prompts that are being computed, or computed again after a loss, each known by the key of its next block.

    So a request whose tokens are found up to there, and whose next block is that one, will find more: all that both
    begin with.
    """

    def __init__(self, block: int) -> None:
        self._block = block
        self._next: dict[bytes, Request] = {}
        self._keys: dict[str, bytes] = {}

    def note(self, request: Request, tokens: int | None = None) -> None:
        """Note how far it is, now that it begins or has come further. tokens: from the first on that are there; None:
        those that are computed."""
        self.forget(request)
        place = (request.num_computed if tokens is None else tokens) // self._block * KEY_BYTES
        key = bytes(request.prefix_keys[place : place + KEY_BYTES])
        if key and key not in self._next:
            self._next[key] = request
            self._keys[request.id] = key

    def forget(self, request: Request) -> None:
        key = self._keys.pop(request.id, None)
        if key is not None:
            del self._next[key]

    def find(self, request: Request) -> tuple[Request, int] | None:
        """Return who computes what a waiting request, which has just been looked up, would go on with; and how many of
        its tokens there will be then."""
        mine = request.prefix_keys
        low = request.blocks_found
        other = self._next.get(bytes(mine[low * KEY_BYTES : (low + 1) * KEY_BYTES]))
        if other is None:
            return None
        theirs = other.prefix_keys
        high = min(len(mine), len(theirs)) // KEY_BYTES
        high = min(high, (request.num_tokens - 1) // self._block)
        while low < high:
            middle = (low + high + 1) // 2
            place = (middle - 1) * KEY_BYTES
            alike = mine[place : place + KEY_BYTES] == theirs[place : place + KEY_BYTES]
            low, high = (middle, high) if alike else (low, middle - 1)
        return other, low * self._block
