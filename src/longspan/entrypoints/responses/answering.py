"""One response while it is made, and how it is kept."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Hashable
from contextlib import aclosing
from dataclasses import dataclass

import msgspec

from longspan.entrypoints.openai.blocks import BlockReader, Step
from longspan.entrypoints.openai.context import Context
from longspan.entrypoints.openai.decoding import LARGE_BODY
from longspan.entrypoints.openai.quoting import quoted
from longspan.entrypoints.responses.answers import ResponseObject
from longspan.entrypoints.responses.events import Items
from longspan.entrypoints.responses.items import Item, decode_items, encode_items
from longspan.entrypoints.responses.object import complete
from longspan.entrypoints.responses.store import ResponseStore, Stored, Turn
from longspan.errors import RequestError

logger = logging.getLogger("longspan.server")

_WARN_EVERY_S = 60.0


@dataclass(slots=True, eq=False)
class Answering:
    """A response that is being made. given: the items of its request. before: the turn that it goes on from."""

    owner: Hashable
    given: list[Item]
    before: Turn | None
    response: ResponseObject
    reader: BlockReader
    items: Items

    async def steps(self) -> AsyncGenerator[Step, None]:
        """Yield what becomes of it, and complete it. Closing it aborts the request. Raises what the engine does."""
        async with aclosing(self.reader.steps()) as steps:
            async for step in steps:
                self.response.status = "in_progress"
                yield step
        complete(self.response, self.reader, self.items.all)

    async def read_all(self) -> None:
        """Complete it."""
        async with aclosing(self.steps()) as steps:
            async for step in steps:
                self.items.take(step)


class Keeper:
    """Keeps responses, and finds the conversations that go on."""

    def __init__(self, context: Context) -> None:
        self._context = context
        config = context.config
        self.store = ResponseStore(config.stored_responses, int(config.stored_responses_mb * 1024 * 1024))
        self._next_warning = 0.0

    def keep(self, answering: Answering) -> bytes:
        """Return a response as it is now, which is kept if it shall be."""
        response = answering.response
        data = msgspec.json.encode(response)
        if response.store:
            items = encode_items([*answering.given, *response.output])
            evicted = self.store.num_evicted
            turn = Turn(answering.before, items, len(answering.given))
            self.store.put(answering.owner, Stored(response.id, data, turn))
            if self.store.num_evicted > evicted:
                self._warn()
        return data

    @property
    def keeps(self) -> bool:
        """Whether any are kept."""
        return self.store.max_responses > 0

    def turn(self, owner: Hashable, response_id: str) -> Turn:
        """Return the turn of a response, to go on from. Raises RequestError."""
        stored = self.store.get(owner, response_id)
        if stored is None:
            raise RequestError(
                f"previous_response_id: there is no response {quoted(response_id)} to go on from; {self.bounds}",
                param="previous_response_id", code="previous_response_not_found",
            )  # fmt: skip
        return stored.turn

    @property
    def bounds(self) -> str:
        """What may have become of a response that is not there."""
        store = self.store
        return (
            f"of those that are complete this server keeps {store.max_responses} in {store.max_bytes >> 20} MiB, the "
            "newest ones, until it ends"
        )

    async def conversation(self, turn: Turn) -> list[Item]:
        """Return all items up to this turn."""
        path = turn.path()
        size = sum(one.size for one in path)

        def work() -> list[Item]:
            return [item for one in path for item in decode_items(one.items)]

        return work() if size <= LARGE_BODY else await self._context.pool.run(lambda _: work(), size)

    def _warn(self) -> None:
        if (now := time.monotonic()) >= self._next_warning:
            self._next_warning = now + _WARN_EVERY_S
            logger.warning(
                "stored responses are given up for newer ones, %d so far; --stored-responses and "
                "--stored-responses-mb say how many are kept", self.store.num_evicted,
            )  # fmt: skip
