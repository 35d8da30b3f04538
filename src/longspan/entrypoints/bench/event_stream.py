"""Server-sent events out of the bytes of a body, wherever the network cuts them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

MAX_EVENT_BYTES = 4 << 20  # no answer's piece is so long; what never ends a line is not kept for ever

_LINE_END = re.compile(rb"\r\n|\n|\r")
_MARK = b"\xef\xbb\xbf"


class EventTooLongError(ValueError):
    """The server ended no line for megabytes."""


class ServerEvent(NamedTuple):
    """A server-sent event.

    name: "message" where none is given. time: when its last line of data was complete.
    """

    name: bytes
    data: bytes
    time: float


class EventStream:
    """Feed it the body; it gives the events that are complete. Comments, ids and retry times are left out.

    Lines end in LF, CRLF or CR; several lines of data are one event, joined by LF; an empty line ends an event.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._name = b"message"
        self._data: list[bytes] = []
        self._time = 0.0
        self._is_first_line = True

    def feed(self, data: bytes, now: float) -> Iterator[ServerEvent]:
        """Raises EventTooLongError."""
        *lines, self._rest = self._lines(self._rest + data)
        for line in lines:
            yield from self._take(line, now)
        if len(self._rest) > MAX_EVENT_BYTES:
            raise EventTooLongError

    def end(self, now: float) -> Iterator[ServerEvent]:
        """Note that the body has ended: so has a last line, and a last event."""
        line, self._rest = self._rest.removesuffix(b"\r"), b""
        yield from self._take(line, now)
        yield from self._take(b"", now)

    def _lines(self, text: bytes) -> list[bytes]:
        """The last one is not complete. A CR at the end may be half of a CRLF, so it waits."""
        if not text.endswith(b"\r"):
            return _LINE_END.split(text)
        *lines, last = _LINE_END.split(text[:-1])
        return [*lines, last + b"\r"]

    def _take(self, line: bytes, now: float) -> Iterator[ServerEvent]:
        if self._is_first_line:
            line, self._is_first_line = line.removeprefix(_MARK), False
        if not line:
            if self._data:
                yield ServerEvent(self._name, b"\n".join(self._data), self._time)
            self._name, self._data = b"message", []
            return
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
            self._time = now
        elif field == b"event":
            self._name = value
