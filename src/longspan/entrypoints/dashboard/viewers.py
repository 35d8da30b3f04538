"""All who look at a running server: one model, one frame a moment, for all of them together."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable

from longspan import __version__
from longspan.engine.observer.messages import Frames
from longspan.engine.protocol import EngineClient, View
from longspan.errors import QueueFullError
from longspan.metrics.fleet.frames import About

logger = logging.getLogger("longspan.server")

INTERVAL_S, LONGEST_S = 0.25, 1.0
IDLE_S = 1.0
MOST_OF_THE_LOOP, MOST_OF_THE_PROCESS = 0.01, 0.005
"""Shares of the event loop's time, and of the CPU time that the process uses: the second one up to `LONGEST_S`."""
MOST_VIEWERS = 64
MOST_PENDING = 8
"""Frames that wait for a viewer. One that has more to read is told no more, and may come again."""
_WEIGHT = 0.2


class Viewer:
    """One who looks. dropped: it read too slowly. push, to be set: writes at once, and tells whether it did."""

    def __init__(self) -> None:
        self.dropped = False
        self.has_whole = False
        self.push: Callable[[bytes], bool] | None = None
        self._waits = False  # its stream has begun, and has written all that there was
        self._pending: asyncio.Queue[bytes | None] = asyncio.Queue()

    def tell(self, data: bytes) -> None:
        """Give it a frame; nothing waits for it."""
        if self._waits and self.push is not None and self._pending.empty() and self.push(data):
            return
        if self._pending.qsize() < MOST_PENDING:
            self._pending.put_nowait(data)
            return
        self.dropped = True
        while not self._pending.empty():
            self._pending.get_nowait()
        self.end()

    def end(self) -> None:
        """Have its stream end, behind what it has yet to read."""
        self._pending.put_nowait(None)

    async def frames(self) -> AsyncIterator[bytes]:
        """Yield what it is told and was not written at once, to its end."""
        while (data := await self._next()) is not None:
            yield data

    async def _next(self) -> bytes | None:
        self._waits = True
        data = await self._pending.get()
        self._waits = False
        return data


class Viewers:
    """They share what is worked out, and nothing is where nobody looks.

    num_viewers: whose streams have not ended. num_told: who are told. cost_s: seconds that a frame takes. used: the
    CPU time that the process uses, of each second.
    """

    def __init__(self, engine: EngineClient) -> None:
        self.num_viewers = 0
        self.cost_s = 0.0
        self.used = 0.0
        self._looked_at = (time.perf_counter(), time.process_time())
        self._engine = engine
        self._told: set[Viewer] = set()
        self._work: asyncio.Task[None] | None = None

    @property
    def num_told(self) -> int:
        return len(self._told)

    @property
    def interval_s(self) -> float:
        """Seconds from frame to frame: all of them take no more than a hundredth of the event loop, and where a frame
        a second does so, no more than a two-hundredth of what the process uses."""
        little = self.cost_s / max(MOST_OF_THE_PROCESS * self.used, 1e-9)
        return max(INTERVAL_S, self.cost_s / MOST_OF_THE_LOOP, min(LONGEST_S, little))

    def join(self) -> Viewer:
        """Return one more, until it leaves. Raises QueueFullError."""
        if self.num_viewers >= MOST_VIEWERS:
            raise QueueFullError(f"{self.num_viewers} look at this server already; close a page, or try again later",
                                 retry_after_s=5)  # fmt: skip
        self.num_viewers += 1
        viewer = Viewer()
        self._told.add(viewer)
        if self._work is None:
            self._work = asyncio.get_running_loop().create_task(self._tell_all())
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """Its stream has ended."""
        self.num_viewers -= 1
        self._told.discard(viewer)

    async def _tell_all(self) -> None:
        try:
            with self._engine.watching() as view:
                await self._go_on(view)
        except Exception:
            logger.exception("the page cannot be told what there is to see")
        finally:
            self._work = None
            for viewer in self._told:
                viewer.end()
            self._told.clear()

    async def _go_on(self, view: View) -> None:
        """Until nobody looks any more, or there is nothing more to see."""
        await view.remember()
        seen, told_at, is_empty = -1, 0.0, False
        while self._told:
            began, count = time.perf_counter(), view.catch_up()
            is_new = count != seen or began - told_at >= IDLE_S
            if is_new or any([not viewer.has_whole for viewer in self._told]):
                seen, told_at = count, began
                wants_whole = any([not viewer.has_whole for viewer in self._told])
                asked = view.frames(self._about() if wants_whole else None, self._state())
                cost_s, frames = time.perf_counter() - began, await asked
                if frames.is_over:
                    return
                began, is_empty = time.perf_counter(), frames.is_empty
                self._tell(frames)
                cost_s += time.perf_counter() - began + frames.took_s
                self.cost_s += _WEIGHT * (cost_s - self.cost_s)
                self._note_use()
            if self._is_over(is_empty):
                return
            await asyncio.sleep(self.interval_s)

    def _note_use(self) -> None:
        now, used = time.perf_counter(), time.process_time()
        passed_s, used_s = now - self._looked_at[0], used - self._looked_at[1]
        self._looked_at = (now, used)
        self.used += _WEIGHT * (used_s / max(passed_s, 1e-6) - self.used)

    def _tell(self, frames: Frames) -> None:
        for viewer in list(self._told):
            if data := frames.changes if viewer.has_whole else frames.whole:
                viewer.tell(data)
                viewer.has_whole = True
            if viewer.dropped:
                self._told.discard(viewer)

    def _is_over(self, is_empty: bool) -> bool:
        """A server that stops does not wait for who looks on. is_empty: no request is alive."""
        return self._engine.error is not None or (self._engine.draining and is_empty)

    def _state(self) -> str | None:
        engine = self._engine
        if engine.error is not None:
            return f"the engine is dead: {engine.error}"
        if (stalled := engine.stalled) is not None:
            return f"the engine stalls: {stalled}"
        if engine.draining:
            return "the server is stopping: running requests finish, new ones are refused"
        return None

    def _about(self) -> About:
        config = self._engine.config
        tokens = self._engine.total_kv_tokens // max(1, config.num_instances)
        return About(self._engine.model_name, str(config.policy), config.num_instances, tokens, __version__, "unix")
