"""The responses that a server keeps for clients that ask for them, or go on from them: in memory, within bounds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

OVERHEAD = 512
"""Bytes that something kept costs besides what it holds."""


@dataclass(slots=True, eq=False)
class Turn:
    """One request's part of a conversation: its input and its output, as JSON. Later ones go on from it.

    users: responses that are kept, and turns after it, that need it. It counts while there are some.
    """

    parent: Turn | None
    items: bytes
    num_input: int
    users: int = 0

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.items) + OVERHEAD

    def path(self) -> list[Turn]:
        """Return the turns up to this one, the first one first."""
        found: list[Turn] = []
        turn: Turn | None = self
        while turn is not None:
            found.append(turn)
            turn = turn.parent
        return found[::-1]


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """One response: what clients get of it, as JSON, and its turn."""

    response_id: str
    answer: bytes
    turn: Turn

    @property
    def size(self) -> int:
        """Bytes, but those of its turn."""
        return len(self.answer) + OVERHEAD


@dataclass(slots=True)
class _Owner:
    """What one owner has. num_bytes: with the turns that its responses need."""

    responses: OrderedDict[str, Stored] = field(default_factory=OrderedDict)
    num_bytes: int = 0


class ResponseStore:
    """Whoever has no room for a new one gives up the oldest of whoever has most: nobody can push out the others'.

    num_evicted: how many were given up so.
    """

    def __init__(self, max_responses: int, max_bytes: int) -> None:
        self.max_responses = max_responses
        self.max_bytes = max_bytes
        self.num_evicted = 0
        self._owners: dict[Hashable, _Owner] = {}
        self.num_responses = 0
        self.num_bytes = 0

    def put(self, owner: Hashable, stored: Stored) -> None:
        """Keep one. What would be too large alone is not kept, and counts as given up."""
        if self.max_responses < 1 or stored.size + stored.turn.size > self.max_bytes:
            self.num_evicted += 1
            return
        has = self._owners.setdefault(owner, _Owner())
        has.responses[stored.response_id] = stored
        self.num_responses += 1
        self._count(has, stored.size)
        self._retain(has, stored.turn)
        for victim in self._too_much():
            self._drop(victim, next(iter(self._owners[victim].responses)))
            self.num_evicted += 1

    def get(self, owner: Hashable, response_id: str) -> Stored | None:
        """Return one, if it is this owner's and still there."""
        has = self._owners.get(owner)
        return None if has is None else has.responses.get(response_id)

    def delete(self, owner: Hashable, response_id: str) -> bool:
        """Forget one; tell whether it was there. Those that go on from it keep what they need."""
        if self.get(owner, response_id) is None:
            return False
        self._drop(owner, response_id)
        return True

    def _too_much(self) -> Iterator[Hashable]:
        """Yield who has to give up one, as long as there are too many, or too much."""
        while self.num_responses > self.max_responses:
            yield max(self._owners, key=lambda owner: len(self._owners[owner].responses))
        while self.num_bytes > self.max_bytes:
            yield max(self._owners, key=lambda owner: self._owners[owner].num_bytes)

    def _drop(self, owner: Hashable, response_id: str) -> None:
        has = self._owners[owner]
        stored = has.responses.pop(response_id)
        self.num_responses -= 1
        self._count(has, -stored.size)
        self._release(has, stored.turn)
        if not has.responses:
            del self._owners[owner]

    def _retain(self, has: _Owner, turn: Turn | None) -> None:
        """One more needs a turn; who is the first needs those before it."""
        while turn is not None:
            turn.users += 1
            if turn.users > 1:
                return
            self._count(has, turn.size)
            turn = turn.parent

    def _release(self, has: _Owner, turn: Turn | None) -> None:
        while turn is not None:
            turn.users -= 1
            if turn.users:
                return
            self._count(has, -turn.size)
            turn = turn.parent

    def _count(self, has: _Owner, size: int) -> None:
        has.num_bytes += size
        self.num_bytes += size
