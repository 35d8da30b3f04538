"""Grammars of requests, tried out in a process of their own before they are let to a worker.

What a client sends may crash its compiler, or keep it busy: then that process ends, and the next one is as new.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import queue
import signal
import threading
from collections import OrderedDict
from concurrent.futures import Future
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from longspan.engine.departures import Departures
from longspan.errors import QueueFullError, RequestError
from longspan.interrupts import interrupts_held_back
from longspan.structured_outputs import StructuredOutputs
from longspan.worker import grammar_process
from longspan.worker.grammar_process import Tried
from longspan.worker.matcher import is_installed
from longspan.worker.messages import LoadVocabulary

logger = logging.getLogger(__name__)

START_S, ANSWER_S = 120.0, 60.0
"""Seconds to wait. The process is ended by its CPU time: on a busy machine a small grammar may take long, and
only a process that hangs does not answer at all."""
_TOO_LONG = "it costs too much: to compile it takes more than a second; make it smaller"
_HANGS = "its compiler does not answer within {} s; make it smaller"
_CRASHES = "its compiler crashes; make it smaller, or less deep"
MAX_WAITING = 64
MAX_KEPT = 256


class Grammars:
    """The grammars that one engine knows. `compiled` and `close` belong to its event loop."""

    def __init__(self, vocabulary: LoadVocabulary) -> None:
        self._vocabulary = vocabulary
        self._kept: OrderedDict[StructuredOutputs, Tried] = OrderedDict()
        self._under_way: dict[StructuredOutputs, Future[Tried]] = {}
        self._departures = Departures()
        self._jobs: queue.SimpleQueue[tuple[StructuredOutputs, Future[Tried]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None
        self._closing = False

    async def compiled(self, wanted: StructuredOutputs) -> str:
        """Return the grammar for `SamplingState`. One that is known already costs nothing.

        Raises:
            RequestError: it cannot be compiled, nothing matches it, or it costs too much.
            QueueFullError: too many wait to be tried.
        """
        tried = self._kept.get(wanted)
        if tried is None:
            tried = await self._try(wanted)
            self._kept[wanted] = tried
            if len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(wanted)
        if tried.error:
            raise RequestError(
                f"structured_outputs: the {_NAMES[wanted.kind]} cannot be used: {tried.error}",
                param="structured_outputs", code="invalid_grammar",
            )  # fmt: skip
        return tried.grammar

    async def _try(self, wanted: StructuredOutputs) -> Tried:
        if not is_installed():
            return Tried(error="this server has no llguidance; install it with pip, and start the server again")
        future = self._under_way.get(wanted)
        if future is None:
            if len(self._under_way) >= MAX_WAITING:
                raise QueueFullError(
                    f"{MAX_WAITING} grammars wait to be compiled; try again later",
                    retry_after_s=self._departures.after_s(),
                )
            if not self._under_way:
                self._departures.begin()
            future = self._under_way[wanted] = Future()
            self._jobs.put((wanted, future))
            if self._thread is None:
                # The kernel ends the process with the thread that started it.
                self._thread = threading.Thread(target=self._serve, name="grammars", daemon=True)
                self._thread.start()
        try:
            return await asyncio.shield(asyncio.wrap_future(future))
        finally:
            if future.done() and self._under_way.pop(wanted, None) is not None:
                self._departures.note()

    def close(self) -> None:
        """End the process, if there is one."""
        self._closing = True
        self._jobs.put(None)
        self._end()
        if self._thread is not None:
            self._thread.join()
            self._end()

    # -- on the thread

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None and not self._closing:
            wanted, future = job
            try:
                future.set_result(self._ask(wanted))
            except Exception as error:
                logger.exception("a grammar could not be tried")
                future.set_exception(error)

    def _ask(self, wanted: StructuredOutputs) -> Tried:
        try:
            if self._pipe is None and (error := self._start()):
                return Tried(error=error)
            assert self._pipe is not None
            self._pipe.send((wanted.kind, wanted.text, wanted.after))
            if self._pipe.poll(ANSWER_S):
                tried: Tried = self._pipe.recv()
                return tried
            said = _HANGS.format(f"{ANSWER_S:g}")
        except (EOFError, OSError):
            said = _TOO_LONG if self._ran_too_long() else _CRASHES
        self._end()
        return Tried(error=said)

    def _start(self) -> str:
        """Start the process. Returns why it cannot be used; an empty text if it can."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        given = self._vocabulary
        arguments = (theirs, given.tokenizer_json, given.eos_token_ids, given.num_rows)
        with interrupts_held_back():
            process = context.Process(target=grammar_process.main, args=arguments, name="grammars", daemon=True)
            process.start()
        self._process = process
        theirs.close()
        error: str = self._pipe.recv() if self._pipe.poll(START_S) else "its compiler does not start"
        if error:
            self._end()
        return error

    def _ran_too_long(self) -> bool:
        """Of a process that has ended: whether the kernel ended it, since it computed too long."""
        process = self._process
        if process is None:  # closed meanwhile
            return False
        process.join(ANSWER_S)
        return process.exitcode == -signal.SIGXCPU

    def _end(self) -> None:
        process, self._process, self._pipe = self._process, None, None
        if process is not None:
            process.kill()
            process.join()


_NAMES = {
    "json": "JSON schema", "json_object": "JSON schema", "regex": "regular expression", "choice": "choice",
    "grammar": "grammar",
}  # fmt: skip
