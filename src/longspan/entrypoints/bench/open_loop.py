"""An open-loop client: requests leave on schedule, however slow the server is.

A closed loop, which sends the next request when an answer is there, slows down with the server and so hides how long
requests would have waited (coordinated omission).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field

from longspan.entrypoints.bench.completion_stream import CompletionStream
from longspan.entrypoints.bench.exchange import Endpoint, ExchangeError, clock, exchange
from longspan.metrics.request_metrics import Outcome, RequestRecord
from longspan.workload.traces import TraceRequest

PATH = "/v1/completions"
LEAD_S = 0.1  # before the first departure, so that it can be on time

MakeBody = Callable[[int, TraceRequest], bytes]


@dataclass(slots=True)
class SentRequest:
    """The fate of one request. Times are seconds since the run's start.

    scheduled_s: when it should have left. departed_s: when the client came to it; the difference is the client's own
    lateness. sent_s: when it was sent; later than departed only where --max-concurrency holds it back.
    status: of the HTTP answer, if one came. message: of the error, if it did not finish.
    """

    index: int
    scheduled_s: float
    departed_s: float
    num_prompt_tokens: int
    sent_s: float | None = None
    ended_s: float = 0.0
    num_output_tokens: int = 0
    token_times_s: Sequence[float] = ()
    outcome: Outcome = "unfinished"
    status: int | None = None
    message: str | None = None

    def record(self, *, from_send: bool = False) -> RequestRecord:
        """Return a record for metrics; arrived when it should have left, or when it was sent."""
        return RequestRecord(
            arrived_s=self.sent_s if from_send and self.sent_s is not None else self.scheduled_s,
            ended_s=self.ended_s,
            num_prompt_tokens=self.num_prompt_tokens,
            num_output_tokens=self.num_output_tokens,
            token_times_s=self.token_times_s,
            outcome=self.outcome,
        )


@dataclass(slots=True)
class Counts:
    """The progress of a run, for displays."""

    planned: int
    departed: int = 0
    ended: dict[Outcome, int] = field(default_factory=dict)
    output_pieces: int = 0

    @property
    def running(self) -> int:
        return self.departed - sum(self.ended.values())


class OpenLoop:
    """One run of a workload against one server. `sent` and `counts` may be read at any time."""

    def __init__(
        self, endpoint: Endpoint, requests: Sequence[TraceRequest], make_body: MakeBody, max_concurrency: int = 0,
        timeout_s: float | None = None,
    ) -> None:  # fmt: skip
        """Take the run's limits.

        max_concurrency: requests at the server at once; 0 sets no limit. timeout_s: of each, since it was sent.
        """
        self.sent: list[SentRequest] = []
        self.counts = Counts(len(requests))
        self._endpoint = endpoint
        self._requests = requests
        self._make_body = make_body
        self._max_concurrency = max_concurrency
        self._timeout_s = timeout_s
        self._begin = 0.0

    async def run(self) -> None:
        """Run until all ended. Cancelled, what still runs counts as unfinished."""
        room: AbstractAsyncContextManager[None] = (
            asyncio.Semaphore(self._max_concurrency) if self._max_concurrency else nullcontext()
        )
        self._begin = clock() + LEAD_S
        async with asyncio.TaskGroup() as running:
            for index, request in enumerate(self._requests):
                body = self._make_body(index, request)  # ahead of time: 100,000 token ids take about 10 ms
                scheduled_s = request.arrived_at_s or 0.0
                await asyncio.sleep(max(0.0, scheduled_s - self._now()))
                sent = SentRequest(index, scheduled_s, self._now(), request.num_prompt_tokens)
                self.sent.append(sent)
                self.counts.departed += 1
                running.create_task(self._send(sent, body, room))

    async def _send(self, sent: SentRequest, body: bytes, room: AbstractAsyncContextManager[None]) -> None:
        stream = CompletionStream()
        request = self._endpoint.request("POST", PATH, body)
        try:
            async with room:
                sent.sent_s = self._now()
                sent.status = await exchange(self._endpoint, request, self._counted(stream), self._timeout_s)
            stream.end(clock())
        except ExchangeError as error:
            stream.end(clock())
            if not stream.complete:  # some servers end a stream by closing the connection
                stream.error = stream.error or str(error)
        finally:
            self._settle(sent, stream)

    def _counted(self, stream: CompletionStream) -> Callable[[int, bytes, float], None]:
        def feed(status: int, data: bytes, now: float) -> None:
            before = stream.num_pieces
            stream.feed(status, data, now)
            self.counts.output_pieces += stream.num_pieces - before

        return feed

    def _settle(self, sent: SentRequest, stream: CompletionStream) -> None:
        sent.ended_s = self._now()
        sent.token_times_s = [time - self._begin for time in stream.times]
        sent.num_output_tokens = stream.num_output_tokens
        if stream.num_prompt_tokens is not None:
            sent.num_prompt_tokens = stream.num_prompt_tokens
        sent.outcome, sent.message = _outcome(sent, stream)
        self.counts.ended[sent.outcome] = self.counts.ended.get(sent.outcome, 0) + 1

    def _now(self) -> float:
        return clock() - self._begin


def _outcome(sent: SentRequest, stream: CompletionStream) -> tuple[Outcome, str | None]:
    if sent.status not in (None, 200):
        return "refused", stream.error or f"status {sent.status}"
    if stream.error is not None:
        return "failed", stream.error
    if sent.status is None and not stream.complete:
        return "unfinished", None
    if not stream.complete:
        return "failed", "the stream ended in the middle: with neither a finish_reason nor [DONE]"
    if not stream.times:
        return "failed", "the stream held no output"
    return "finished", None
