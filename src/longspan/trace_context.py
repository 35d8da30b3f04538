"""Which trace the request that is being answered is part of, as its client said: W3C's `traceparent`, `tracestate`."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar

HEADERS = ("traceparent", "tracestate")

trace_context: ContextVar[Mapping[str, str] | None] = ContextVar("trace_context", default=None)
"""These headers, those that there are; None: nobody traces."""
