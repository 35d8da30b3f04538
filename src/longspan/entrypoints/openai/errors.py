"""Every error leaves here, in OpenAI's shape: {"error": {"message", "type", "param", "code"}}, or where Anthropic's API
is spoken in Anthropic's: {"type": "error", "error": {"type", "message"}, "request_id"}."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from longspan.entrypoints.openai.dialect import speaks_anthropic
from longspan.entrypoints.openai.quoting import quoted
from longspan.entrypoints.openai.request_id import HEADER as REQUEST_ID_HEADER
from longspan.entrypoints.openai.request_id import request_id_of
from longspan.errors import (
    EngineDeadError,
    EngineDrainingError,
    EngineStalledError,
    FleetTooSmallError,
    LongspanError,
    ModelOutputError,
    OverloadedError,
    QueueFullError,
    RequestError,
    RequestFailedError,
)
from longspan.metrics.prometheus import Ending, ServerMetrics

logger = logging.getLogger("longspan.server")

MAX_MESSAGE_CHARS = 2000
RESTART_S = 5  # another server may answer by then; this one will not


class ModelNotFoundError(RequestError):
    """The request names a model that is not served here (HTTP 404)."""


class ClientDisconnectedError(LongspanError):
    """The client does not wait for the answer any more."""


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """An error as a client sees it."""

    status: int
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def shown(self) -> str:
        """The message as it is sent: it may quote what clients sent."""
        return self.message[:MAX_MESSAGE_CHARS].encode("utf-8", "replace").decode()

    def json(self) -> bytes:
        """Return its body for clients of OpenAI's."""
        error = {"message": self.shown, "type": self.type, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error})

    def anthropic_json(self, request_id: str) -> bytes:
        """Return its body for clients of Anthropic's."""
        default = "invalid_request_error" if self.status < 500 else "api_error"
        error = {"type": _ANTHROPIC_TYPES.get(self.status, default), "message": self.shown}
        return msgspec.json.encode({"type": "error", "error": error, "request_id": request_id})

    def body(self, scope: Scope) -> bytes:
        """Return its body for the client of this request, which may have been read in part only."""
        if speaks_anthropic(scope.get("path", "")):
            return self.anthropic_json(request_id_of(scope))
        return self.json()

    def response(self) -> Response:
        """Return the response for an answer that `refuse` has counted."""
        return ErrorResponse(self)


class ErrorResponse(Response):
    """An error, written once it is known to whom."""

    def __init__(self, answer: ErrorAnswer) -> None:
        super().__init__(b"", answer.status, dict(answer.headers), media_type="application/json")
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.body = self._answer.body(scope)
        self.headers["content-length"] = str(len(self.body))
        await super().__call__(scope, receive, send)


_ANTHROPIC_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 408: "timeout_error",
    413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error",
}  # fmt: skip


def retry_after(seconds: float) -> dict[str, str]:
    """Return the header that says when to come again: in whole seconds, one at least."""
    return {"retry-after": str(max(1, math.ceil(seconds)))}


def overloaded(message: str, retry_after_s: float) -> ErrorAnswer:
    """Return the refusal of a full server: the connection is closed, and its client may try again."""
    headers = {**retry_after(retry_after_s), "connection": "close"}
    return ErrorAnswer(503, message, "server_error", None, "server_overloaded", headers)


class Refusal(HTTPException):
    """An answer, raised. FastAPI lets only HTTPExceptions pass wherever they are raised."""

    def __init__(self, answer: ErrorAnswer) -> None:
        super().__init__(answer.status, answer.message, dict(answer.headers))
        self.answer = answer


_FAILURES: dict[type[LongspanError], tuple[int, str]] = {
    ModelOutputError: (500, "model_output_error"),
    RequestFailedError: (500, "internal_error"),
    EngineDrainingError: (503, "server_draining"),
    EngineDeadError: (503, "engine_dead"),
    EngineStalledError: (503, "engine_stalled"),
}
"""What is the server's fault: status and code."""


def answer_to(error: Exception) -> ErrorAnswer:
    """Turn an exception into an answer; there is no other way."""
    message = str(error)
    for kind, (status, code) in _FAILURES.items():
        if isinstance(error, kind):
            headers = retry_after(RESTART_S) if status == 503 else {}
            return ErrorAnswer(status, message, "server_error", None, code, headers)
    match error:
        case ModelNotFoundError():
            return ErrorAnswer(404, message, "invalid_request_error", error.param, "model_not_found")
        case RequestError():
            return ErrorAnswer(400, message, "invalid_request_error", error.param, error.code)
        case QueueFullError() | OverloadedError():
            code = "overloaded" if isinstance(error, OverloadedError) else "rate_limit_exceeded"
            return ErrorAnswer(429, message, "rate_limit_error", None, code, retry_after(error.retry_after_s))
        case FleetTooSmallError():
            headers = retry_after(error.retry_after_s)
            return ErrorAnswer(503, message, "server_error", None, "fleet_too_small", headers)
        case ClientDisconnectedError():
            return ErrorAnswer(499, message, "invalid_request_error", None, "client_closed_request")
        case Refusal():
            return error.answer
        case HTTPException():
            fault = "invalid_request_error" if error.status_code < 500 else "server_error"
            return ErrorAnswer(error.status_code, error.detail, fault, None, None, error.headers or {})
        case _:
            return ErrorAnswer(500, "the server failed on this request", "server_error", None, "internal_error")


def refuse(metrics: ServerMetrics, error: Exception | ErrorAnswer) -> ErrorAnswer:
    """Return the answer to `error`, which is about to be sent: the one place where errors are counted."""
    answer = error if isinstance(error, ErrorAnswer) else answer_to(error)
    metrics.refuse(answer.code or f"http_{answer.status}")
    return answer


def ending(error: BaseException) -> Ending | None:
    """Return how a request counts that ended so; None: it was refused, which counts where the answer is sent."""
    match error:
        case GeneratorExit() | asyncio.CancelledError() | ClientDisconnectedError():
            return "abort"
        case RequestError() | QueueFullError() | OverloadedError() | EngineDrainingError() | HTTPException():
            return None
        case _:
            return "error"


def install(app: FastAPI, metrics: ServerMetrics) -> None:
    """Make every way out of `app` use the shape, and count."""

    async def known(request: Request, error: Exception) -> Response:
        return refuse(metrics, error).response()

    async def routing(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = f"{quoted(request.method)[1:-1]} {quoted(request.url.path)[1:-1]}"
        answer = answer_to(error)
        if error.status_code == 404 and not isinstance(error, Refusal):
            answer = ErrorAnswer(404, f"unknown path: {what}", "invalid_request_error", None, "unknown_url")
        if error.status_code == 405:
            message = f"method not allowed: {what}"
            allowed = error.headers or {}
            answer = ErrorAnswer(405, message, "invalid_request_error", None, "method_not_allowed", allowed)
        return refuse(metrics, answer).response()

    async def unexpected(request: Request, error: Exception) -> Response:
        # Answered outside our middleware, so the request id is added by hand; uvicorn logs the traceback.
        response = refuse(metrics, error).response()
        response.headers[REQUEST_ID_HEADER] = request_id_of(request.scope)
        return response

    app.add_exception_handler(LongspanError, known)
    app.add_exception_handler(HTTPException, routing)
    app.add_exception_handler(Exception, unexpected)
