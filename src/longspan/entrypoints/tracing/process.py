"""The process that makes spans and sends them: what OpenTelemetry costs, the engine's process does not pay."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from longspan.metrics.ended_request import EndedRequest
from longspan.worker.parent import end_with_parent

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

Sent = tuple[int, str]
"""How many requests' spans were taken, and why the others were not: those that are not sampled count as neither."""


def main(pipe: Connection, endpoint: str, model: str) -> None:
    """Answer each list of `EndedRequest` that comes with `Sent`, until the pipe's other end is closed."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the engine's to handle
    os.nice(5)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import SpanExportResult

    from longspan.entrypoints.tracing.spans import SpanMaker

    complaints = _Complaints()
    logging.basicConfig(handlers=[complaints], level=logging.WARNING)
    maker, exporter = SpanMaker(model), OTLPSpanExporter(endpoint)

    def export(spans: Sequence[ReadableSpan]) -> str:
        complaints.last = ""
        taken = exporter.export(spans) is SpanExportResult.SUCCESS
        return "" if taken else complaints.last or "they were not taken"

    while True:
        try:
            requests: list[EndedRequest] = pipe.recv()
        except EOFError:
            return
        pipe.send(send(maker.spans_of, export, requests))


def send(
    spans_of: Callable[[Sequence[EndedRequest]], Sequence[ReadableSpan]],
    export: Callable[[Sequence[ReadableSpan]], str],
    requests: Sequence[EndedRequest],
) -> Sent:
    """Export the spans of some requests. export: returns why they were not taken; an empty text: they were."""
    from opentelemetry.trace import SpanKind

    try:
        spans = spans_of(requests)
        error = export(spans) if spans else ""
    except Exception as failure:
        error = str(failure) or type(failure).__name__
    return (0, error) if error else (sum(span.kind is SpanKind.SERVER for span in spans), "")


class _Complaints(logging.Handler):
    """The last thing that OpenTelemetry had to say of what went wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.last = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.last = record.getMessage()
