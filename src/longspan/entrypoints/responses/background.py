"""Responses that go on after their requests have been answered."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from longspan.entrypoints.openai.api_keys import keep_counted
from longspan.entrypoints.openai.errors import refuse
from longspan.entrypoints.responses.answering import Answering, Keeper
from longspan.entrypoints.responses.object import fail
from longspan.errors import LongspanError
from longspan.metrics.prometheus import ServerMetrics

logger = logging.getLogger("longspan.server")

REFUSED_WITHIN_S = 0.2
"""How long one may take to be refused, so that its request is."""


@dataclass(frozen=True, slots=True, eq=False)
class _Running:
    answering: Answering
    task: asyncio.Task[None]


class Background:
    """Those of one server. They count against their keys until they end, and wait in the engine's queue like all."""

    def __init__(self, keeper: Keeper, metrics: ServerMetrics) -> None:
        self._keeper = keeper
        self._metrics = metrics
        self._running: dict[str, _Running] = {}

    async def start(self, answering: Answering) -> None:
        """Begin one, and return while it goes on; it may have ended. Raises what it is refused with."""
        task = asyncio.create_task(answering.read_all())
        try:
            await asyncio.wait({task}, timeout=REFUSED_WITHIN_S)
        except asyncio.CancelledError:
            await _end(task)
            raise
        if task.done():
            task.result()
            self._keeper.keep(answering)
            return
        self._running[answering.response.id] = _Running(answering, task)
        end_count = keep_counted()
        task.add_done_callback(lambda done: self._ended(answering, done, end_count))

    def find(self, owner: Hashable, response_id: str) -> Answering | None:
        """Return one that goes on, if it is this owner's."""
        running = self._running.get(response_id)
        return running.answering if running is not None and running.answering.owner == owner else None

    async def cancel(self, answering: Answering) -> None:
        """End one: what it has written so far is dropped, and what it holds is free."""
        running = self._running.pop(answering.response.id)
        answering.response.status, answering.response.output = "cancelled", []
        self._keeper.keep(answering)  # before it has ended: whoever asks meanwhile finds it
        await _end(running.task)

    def _ended(self, answering: Answering, task: asyncio.Task[None], end_count: Callable[[], None]) -> None:
        end_count()
        if self._running.pop(answering.response.id, None) is None or task.cancelled():
            return
        error = task.exception()
        if isinstance(error, Exception):
            if not isinstance(error, LongspanError):
                logger.error("a response in the background failed", exc_info=error)
            fail(answering.response, refuse(self._metrics, error))
        self._keeper.keep(answering)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
