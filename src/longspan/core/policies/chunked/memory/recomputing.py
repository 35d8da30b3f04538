"""Prefixes that are computed once more: the instances that have them are wanted by more than they can serve."""

from __future__ import annotations

from longspan.core.books.request import Request, RequestStatus
from longspan.prefix_keys import KEY_BYTES

_FEW = 64


def last_key(request: Request, blocks: int) -> bytes:
    """Return the key of so many of a request's blocks."""
    return bytes(request.prefix_keys[(blocks - 1) * KEY_BYTES : blocks * KEY_BYTES])


class Recomputing:
    """Who computes what elsewhere. One request is enough for each prefix: the others find it on one instance more then.

    A prefix is known by the key of its last block.
    """

    def __init__(self) -> None:
        self._by_key: dict[bytes, Request] = {}
        self._new: set[str] = set()

    def begin_decision(self) -> None:
        """Forget who was to begin, and has not."""
        self._new.clear()
        if len(self._by_key) > _FEW:
            self._by_key = {key: request for key, request in self._by_key.items() if self._goes_on(request)}

    def may_begin(self, request: Request, key: bytes) -> bool:
        """Tell whether a request that waits may compute a prefix once more; then it is the one who does."""
        other = self._by_key.get(key)
        if other is not None and other is not request and self._goes_on(other):
            return False
        self._by_key[key] = request
        self._new.add(request.id)
        return True

    def _goes_on(self, request: Request) -> bool:
        return request.status is RequestStatus.PREFILLING or request.id in self._new
