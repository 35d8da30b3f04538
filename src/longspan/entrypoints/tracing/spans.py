"""A request's spans: itself, and its time in the queue, in prefill and in decode, with what befell it as events.

Attributes are those of OpenTelemetry's conventions for generative AI, the three `gen_ai.latency.*` vLLM's. No text is
among them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from longspan import __version__
from longspan.metrics.ended_request import EndedRequest
from longspan.metrics.request_list import client_id

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.util.types import AttributeValue

_NS = 1e9


class _Ended(SpanProcessor):
    """Keeps spans that are to be sent until they are taken."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled:
            self.spans.append(span)


class SpanMaker:
    """Makes spans of requests that have ended. Whether a trace is sampled, its client says; else the environment does
    (OTEL_TRACES_SAMPLER)."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._ended = _Ended()
        name = os.environ.get("OTEL_SERVICE_NAME", "longspan")
        resource = Resource.create({"service.name": name, "service.version": __version__})
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(self._ended)
        self._tracer = provider.get_tracer("longspan", __version__)
        self._read = TraceContextTextMapPropagator().extract

    def spans_of(self, requests: Sequence[EndedRequest]) -> list[ReadableSpan]:
        """Return the spans of all of them, which end with now."""
        since_boot = time.time() - time.monotonic()
        for request in requests:
            self._make(request, since_boot)
        spans, self._ended.spans = self._ended.spans, []
        return spans

    def _make(self, request: EndedRequest, since_boot: float) -> None:
        def at(seconds: float) -> int:
            return int((seconds + since_boot) * _NS)

        times = request.times
        end = times.finished if times.finished is not None else times.arrived
        operation = "chat" if request.request_id.startswith("chatcmpl-") else "text_completion"
        parent: Context = self._read(dict(request.trace or {}))
        whole = self._tracer.start_span(
            f"{operation} {self._model}", parent, SpanKind.SERVER, start_time=at(times.arrived),
            attributes={"gen_ai.operation.name": operation, **self._attributes(request, end)},
        )  # fmt: skip
        inside = set_span_in_context(whole)
        for name, first, last in phases(request, end):
            span = self._tracer.start_span(name, inside, start_time=at(first))
            for happening in request.happenings:
                if first <= happening.start < last or happening.start == last == end:
                    told: dict[str, AttributeValue] = {"longspan.instances": list(happening.group)}
                    if happening.end > happening.start:
                        told["longspan.seconds"] = happening.end - happening.start
                    span.add_event(happening.what, told, at(happening.start))
            span.end(at(last))
        if request.error is not None:
            whole.set_attribute("error.type", request.error)
            whole.set_status(Status(StatusCode.ERROR, request.error))
        whole.end(at(end))

    def _attributes(self, request: EndedRequest, end: float) -> dict[str, Any]:
        params, times = request.params, request.times
        found: dict[str, Any] = {
            "gen_ai.provider.name": "longspan",
            "gen_ai.request.model": self._model,
            "gen_ai.response.model": self._model,
            "gen_ai.response.id": request.request_id.rpartition("-")[0].rpartition("-")[0] or request.request_id,
            "gen_ai.request.max_tokens": params.max_tokens,
            "gen_ai.request.temperature": params.temperature,
            "gen_ai.request.top_p": params.top_p,
            "gen_ai.request.seed": params.seed,
            "gen_ai.usage.input_tokens": request.num_prompt_tokens,
            "gen_ai.usage.output_tokens": request.num_output_tokens,
            "gen_ai.usage.cache_read.input_tokens": request.num_cached_tokens,
            "gen_ai.response.finish_reasons": None if request.finish_reason is None else [request.finish_reason],
            "gen_ai.latency.time_in_queue": None if times.scheduled is None else times.scheduled - times.arrived,
            "gen_ai.latency.time_to_first_token": (
                None if times.first_token is None else times.first_token - times.arrived
            ),
            "gen_ai.latency.e2e": end - times.arrived,
            "longspan.request_id": client_id(request.request_id),
            "longspan.num_preemptions": request.num_preemptions,
        }
        return {name: value for name, value in found.items() if value is not None}


def phases(request: EndedRequest, end: float) -> Iterator[tuple[str, float, float]]:
    """Yield the name, begin and end of each that it had; the last one ends with it."""
    times = request.times
    known = [("queue", times.arrived), ("prefill", times.scheduled), ("decode", times.first_token)]
    begun = [(name, at) for name, at in known if at is not None]
    for (name, at), until in zip(begun, [at for _, at in begun[1:]] + [end], strict=True):
        yield name, at, until
