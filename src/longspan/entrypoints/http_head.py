"""A request's line and headers: what is not served of them, and what is passed over."""

from __future__ import annotations

from collections.abc import Sequence

import httptools

from longspan.entrypoints.http_connections import ConnectionLimits
from longspan.entrypoints.http_refusals import CLOSE, RefusedError, malformed
from longspan.entrypoints.openai.errors import ErrorAnswer

Headers = Sequence[tuple[bytes, bytes]]


def check_head(parser: httptools.HttpRequestParser, url: bytes, headers: Headers, limits: ConnectionLimits) -> None:
    """Raises RefusedError for a request line and headers that are not served."""
    if parser.get_method() == b"CONNECT":
        answer = ErrorAnswer(405, "method not allowed: CONNECT", "invalid_request_error", None, "method_not_allowed")
        raise RefusedError(answer)
    version = parser.get_http_version()
    if version not in ("1.0", "1.1"):
        raise RefusedError(malformed(f"HTTP/{version} is not spoken here, HTTP/1.1 is"))
    if len(url) + sum(len(name) + len(value) + 4 for name, value in headers) > limits.header_bytes:
        raise RefusedError(headers_too_large(limits))
    hosts = sum(name == b"host" for name, _ in headers)
    if hosts > 1 or (hosts == 0 and version == "1.1"):
        raise RefusedError(malformed("a request needs exactly one Host header"))


def headers_too_large(limits: ConnectionLimits) -> ErrorAnswer:
    message = (
        f"the request line and headers are larger than {limits.header_bytes} bytes, or more than {limits.headers}"
    )
    return ErrorAnswer(431, message, "invalid_request_error", None, "headers_too_large", CLOSE)


def without_upgrade(parser: httptools.HttpRequestParser, url: bytes, headers: Headers) -> bytes:
    """Return a head again, but for its offer to upgrade."""
    head = [parser.get_method(), b" ", url, b" HTTP/", parser.get_http_version().encode(), b"\r\n"]
    head += [name + b": " + value + b"\r\n" for name, value in headers if name != b"upgrade"]
    return b"".join([*head, b"\r\n"])
