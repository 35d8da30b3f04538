"""What is said of requests that cannot be read, and how, where no application can say it."""

from __future__ import annotations

from collections.abc import Iterable

import httptools
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from longspan.entrypoints.openai.errors import ErrorAnswer
from longspan.entrypoints.openai.request_id import HEADER as REQUEST_ID_HEADER
from longspan.entrypoints.openai.request_id import request_id_of

CLOSE = {"connection": "close"}


class RefusedError(Exception):
    """Raised where the parser calls us: it passes no other way out."""

    def __init__(self, answer: ErrorAnswer) -> None:
        super().__init__(answer.message)
        self.answer = answer


def answer_to(error: httptools.HttpParserError) -> ErrorAnswer:
    """Return what is said of what the parser has found wrong, or we where it called us."""
    cause = error.__context__
    if isinstance(cause, RefusedError):
        return cause.answer
    return malformed("its target cannot be read" if cause is not None else str(error))


def malformed(reason: str) -> ErrorAnswer:
    message = f"what was sent is not an HTTP/1.1 request: {reason}"
    return ErrorAnswer(400, message, "invalid_request_error", None, "malformed_request", CLOSE)


def timed_out(message: str) -> ErrorAnswer:
    return ErrorAnswer(408, message, "invalid_request_error", None, "request_timeout", CLOSE)


def as_http(answer: ErrorAnswer, scope: Scope, default_headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the whole HTTP answer, behind which the connection is closed. scope: as far as it could be read."""
    body = answer.body(scope)
    headers = {
        REQUEST_ID_HEADER: request_id_of(scope),
        "content-type": "application/json",
        "content-length": str(len(body)),
        **answer.headers,
        **CLOSE,
    }
    lines = [STATUS_LINE[answer.status]]
    lines += [name + b": " + value + b"\r\n" for name, value in default_headers]
    lines += [f"{name}: {value}\r\n".encode() for name, value in headers.items()]
    return b"".join([*lines, b"\r\n", body])
