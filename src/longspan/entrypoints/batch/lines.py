"""The lines of OpenAI's batch files: requests on one side, what came of them on the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Raw, Struct

from longspan.errors import ConfigError, RequestError

_SHOWN_CHARS = 80
_MARK = b"\xef\xbb\xbf"  # some editors begin a file with it


class BatchRequest(Struct):
    """A line of the input: `body` goes to `url`, and the answer comes back under `custom_id`."""

    custom_id: str
    url: str
    body: Raw
    method: str = "POST"


class BatchResponse(Struct):
    """What the endpoint has answered: an error's `body` is OpenAI's {"error": ...}."""

    status_code: int
    request_id: str
    body: Raw


class BatchError(Struct):
    """Why a line reached no endpoint."""

    code: str
    message: str


class BatchResult(Struct):
    """A line of the output. Of response and error one is there. line: of the input, counted from 1."""

    id: str
    custom_id: str | None
    response: BatchResponse | None
    error: BatchError | None
    line: int

    @property
    def is_final(self) -> bool:
        """Whether it would be no other another time: the answer, or what is wrong with the request."""
        return self.response is not None and self.response.status_code < 500 and self.response.status_code != 429


_requests = msgspec.json.Decoder(BatchRequest)
_results = msgspec.json.Decoder(BatchResult)


class _Whole(Struct):
    """What a file's answers cannot be: in pieces, or later."""

    stream: object = None
    background: object = None


def parse_request(line: bytes) -> BatchRequest:
    """Raises RequestError: it is no request of a batch, or one that cannot be answered in a file."""
    try:
        request = _requests.decode(line)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise RequestError(f"the line is no batch request: {error}", code="invalid_line") from None
    if request.method != "POST":
        raise RequestError(f"method is {request.method[:_SHOWN_CHARS]!r}, but must be POST", code="invalid_method")
    if not request.url.startswith("/v1/") or not request.url.isprintable() or not request.url.isascii():
        raise RequestError(
            f"url is {request.url[:_SHOWN_CHARS]!r}, but must be an endpoint's, such as /v1/chat/completions",
            code="invalid_url",
        )
    try:
        asked = msgspec.json.decode(request.body, type=_Whole)
    except msgspec.MsgspecError:
        return request  # the endpoint says what is wrong
    for name in asked.__struct_fields__:
        if getattr(asked, name):
            raise RequestError(f"{name} is set, but a file takes whole answers; leave it out", code=f"invalid_{name}")
    return request


def custom_id_of(line: bytes) -> str | None:
    """Return the id that a line has, whatever else is wrong with it."""
    try:
        return msgspec.json.decode(line, type=_Named).custom_id
    except (msgspec.MsgspecError, RecursionError):
        return None


class _Named(Struct):
    custom_id: str | None = None


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not empty, counted from 1. A byte order mark is skipped.

    Raises ConfigError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if stripped := (line.removeprefix(_MARK) if number == 1 else line).strip():
                    yield number, stripped
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def parse_result(line: bytes) -> BatchResult | None:
    """Return a line of the output; None: it is none."""
    try:
        return _results.decode(line)
    except (msgspec.MsgspecError, RecursionError):
        return None
