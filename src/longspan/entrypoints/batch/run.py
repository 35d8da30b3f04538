"""Answers a batch's requests through the application that `longspan serve` runs, called without a network."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from uuid import uuid4

import httpx2
import msgspec
from fastapi import FastAPI
from msgspec import Raw, Struct

from longspan.engine.protocol import EngineClient
from longspan.entrypoints.batch.lines import (
    BatchError,
    BatchRequest,
    BatchResponse,
    BatchResult,
    custom_id_of,
    parse_request,
)
from longspan.entrypoints.batch.results import Results
from longspan.entrypoints.openai.request_id import HEADER
from longspan.errors import EngineDeadError, RequestError

_JSON = {"content-type": "application/json"}


@dataclass(slots=True)
class Counts:
    """How far a batch is. total: lines of the input. kept: that an earlier run has answered."""

    total: int
    kept: int = 0
    answered: int = 0
    failed: int = 0
    output_tokens: int = 0

    def line(self, seconds: float) -> str:
        failed = f", {self.failed} with an error" if self.failed else ""
        kept = f" ({self.kept} of them before)" if self.kept else ""
        rate = self.output_tokens / seconds if seconds > 0 else 0.0
        return (
            f"{seconds:.0f} s: {self.kept + self.answered + self.failed} of {self.total} done{kept}{failed}; "
            f"{rate:.1f} output tokens/s"
        )


class Batch:
    """One run over the input's lines.

    lines: numbers and texts, taken as there is room. at_once: requests in flight.
    """

    def __init__(
        self, app: FastAPI, engine: EngineClient, lines: Iterator[tuple[int, bytes]], results: Results, counts: Counts,
        at_once: int,
    ) -> None:  # fmt: skip
        self.engine = engine
        self.lines = lines
        self.results = results
        self.counts = counts
        self.at_once = at_once
        self.seen: set[str] = set()
        transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
        self.client = httpx2.AsyncClient(transport=transport, base_url="http://localhost", timeout=None, headers=_JSON)

    async def run(self) -> None:
        """Answer all. Raises EngineDeadError; LongspanError where the output cannot be written."""
        async with self.client:
            workers = [asyncio.create_task(self._work()) for _ in range(self.at_once)]
            death = asyncio.create_task(self.engine.dead())
            try:
                waiting: set[asyncio.Task[object]] = {*workers, death}
                while waiting != {death}:
                    ended, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    if death in ended:
                        raise EngineDeadError(f"the engine is dead: {death.result()}")
                    for worker in ended:
                        worker.result()
            finally:
                for task in (*workers, death):
                    task.cancel()
                await asyncio.wait({*workers, death})

    async def _work(self) -> None:
        """One line after the other; other workers take from the same."""
        for number, line in self.lines:
            name = custom_id_of(line)
            is_again = name in self.seen
            if name is not None:
                self.seen.add(name)
            if name in self.results.done and not is_again:
                self.counts.kept += 1
                continue
            try:
                request = parse_request(line)
                if is_again:
                    raise RequestError(f"custom_id {name!r} is that of an earlier line", code="duplicate_custom_id")
            except RequestError as error:
                self.counts.failed += 1
                problem = BatchError(error.code or "invalid_line", str(error))
                self.results.add(BatchResult(f"batch_req_{uuid4().hex}", name, None, problem, number))
                continue
            self._take(request, await self._answer(request), number)

    async def _answer(self, request: BatchRequest) -> httpx2.Response:
        """Nobody waits, so a request that there is no room for comes again."""
        while True:
            response = await self.client.post(request.url, content=bytes(request.body))
            if response.status_code != 429:
                return response
            await asyncio.sleep(float(response.headers.get("retry-after", "1")))

    def _take(self, request: BatchRequest, response: httpx2.Response, line: int) -> None:
        if response.status_code >= 500 and self.engine.error is not None:
            raise EngineDeadError(f"the engine is dead: {self.engine.error}")
        request_id = response.headers[HEADER]
        answer = BatchResponse(response.status_code, request_id, Raw(response.content))
        self.results.add(BatchResult(f"batch_req_{request_id}", request.custom_id, answer, None, line))
        if response.status_code == 200:
            self.counts.answered += 1
            with suppress(msgspec.MsgspecError):
                self.counts.output_tokens += msgspec.json.decode(response.content, type=_Answer).usage.tokens
        else:
            self.counts.failed += 1


class _Usage(Struct):
    completion_tokens: int = 0
    output_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.completion_tokens or self.output_tokens


class _Answer(Struct):
    usage: _Usage
