"""An HTTP answer as it came, and whether it is what OpenAI's clients can read, or Anthropic's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass

MAX_HEAD, MAX_BODY = 1 << 16, 1 << 26
LAST_EVENTS = {"message_stop", "error", "response.completed", "response.incomplete", "response.failed"}


class BadAnswerError(Exception):
    """What came is not an HTTP answer."""


@dataclass(frozen=True)
class Answer:
    """headers: names in lower case. complete: the body came to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    complete: bool

    def fault(self) -> str | None:
        """What is wrong with it in itself, whatever was asked; None if nothing is."""
        if not self.complete:
            return "the body ends before its end"
        kind = self.headers.get("content-type", "")
        try:
            text = self.body.decode()
        except UnicodeDecodeError:
            return "the body is not UTF-8"
        if kind.startswith("text/event-stream"):
            return self._stream_fault(text)
        if self.status < 400:
            return _json_fault(text) if kind.startswith("application/json") and text else None
        if not text:  # an answer to HEAD
            return None
        try:
            told = json.loads(text)
            named = {"message", "type"} if told.get("type") == "error" else {"message", "type", "param", "code"}
            if told["error"].keys() >= named and isinstance(told["error"]["message"], str):
                return None
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
        return f"the error is in nobody's shape: {text[:80]!r}"

    @staticmethod
    def _stream_fault(text: str) -> str | None:
        events = [event for event in text.split("\n\n") if event and not event.startswith(":")]
        if not events:
            return "the stream has no events"
        data = [event.rpartition("data: ")[2] for event in events]
        for one in data[:-1] if data[-1] == "[DONE]" else data:
            if (fault := _json_fault(one)) is not None:
                return fault
        if data[-1] != "[DONE]" and json.loads(data[-1]).get("type") not in LAST_EVENTS:
            return "the stream does not end with [DONE], nor with an event that ends it"
        return None

    @property
    def stream_error(self) -> str | None:
        """The error inside a stream, which began with status 200."""
        if not self.headers.get("content-type", "").startswith("text/event-stream"):
            return None
        at = max(self.body.find(start) for start in (b'data: {"error"', b'data: {"type":"error"'))
        return None if at < 0 else self.body[at : at + 200].decode(errors="replace")


def _json_fault(text: str) -> str | None:
    try:
        json.loads(text, parse_constant=_refuse)
    except ValueError as error:
        return f"not JSON: {error}: {text[:80]!r}"
    return None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


async def read_answer(reader: asyncio.StreamReader, method: str) -> Answer | None:
    """None: the connection ended before an answer began. Raises BadAnswerError, ConnectionError."""
    while True:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise BadAnswerError(f"the head ends early: {error.partial[:80]!r}") from error
            return None
        except asyncio.LimitOverrunError as error:
            raise BadAnswerError("the head has no end") from error
        first, *lines = head[:-4].decode("latin-1").split("\r\n")
        version, _, rest = first.partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
            raise BadAnswerError(f"not a status line: {first[:80]!r}")
        status = int(rest[:3])
        if status >= 200:
            break
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body, complete = b"", True
    if method != "HEAD" and status not in (204, 304):
        try:
            body = await _read_body(reader, headers)
        except asyncio.IncompleteReadError as error:
            body, complete = error.partial, False
        except ValueError as error:
            raise BadAnswerError(f"a body that cannot be read: {error}") from error
    return Answer(status, headers, body, complete)


async def _read_body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    if headers.get("transfer-encoding") == "chunked":
        pieces = []
        while True:
            try:
                size = int((await reader.readuntil(b"\r\n"))[:-2], 16)
                pieces.append(await reader.readexactly(size))
                await reader.readexactly(2)
            except asyncio.IncompleteReadError as error:
                raise asyncio.IncompleteReadError(b"".join([*pieces, error.partial]), None) from error
            if size == 0:
                return b"".join(pieces)
    if "content-length" in headers:
        return await reader.readexactly(int(headers["content-length"]))
    return await reader.read(MAX_BODY)
