"""Where in a JSON document a byte lies, for errors: `messages[3].content`."""

from __future__ import annotations

import codecs
import json
import re

_PIECE = 2**20
_LONGEST_ESCAPE = 12
_MAX_TOKENS = 100_000  # of a document beyond, the place is not looked for
_TOKEN = re.compile(
    rb'"(?P<string>(?:[^"\\]++|\\.)*+)(?P<end>"?)|(?P<open>[\[{])|(?P<close>[\]}])|[^"\[\]{}]++', re.DOTALL
)
_VALID_SURROGATES = re.compile(
    rb"(?:[^\\]++|\\(?:[^u]|u(?![dD][89a-fA-F])|u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F]))*+", re.DOTALL
)


def lone_surrogate(document: bytes | bytearray) -> int | None:
    """Return the byte at which half of an escaped surrogate pair begins, if one stands alone."""
    end = 0
    for limit in range(_PIECE, len(document) + _PIECE, _PIECE):  # in pieces, so that other threads get their turn
        match = _VALID_SURROGATES.match(document, end, limit)
        end = match.end() if match else end
        if end < min(limit, len(document)) - _LONGEST_ESCAPE:
            break
    return end if document[end : end + 2] == b"\\u" else None


def bad_utf8(document: bytes | bytearray) -> int | None:
    """Return the first byte that is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(document), _PIECE):
        kept = len(decoder.getstate()[0])
        try:
            decoder.decode(document[start : start + _PIECE], final=start + _PIECE >= len(document))
        except UnicodeDecodeError as error:
            return start - kept + error.start
    return None


def place_of(document: bytes | bytearray, position: int) -> str | None:
    """Return the field around the byte at `position`, of a name the one around that; None: there is none, or it is hard
    to find."""
    path = _Path()
    for number, token in enumerate(_TOKEN.finditer(document)):
        if number > _MAX_TOKENS:
            return None
        if token.start() <= position < token.end() or token["end"] == b"":
            before = document.count(b",", token.start(), position) if token["string"] is None else 0
            return join(path.to_member(before)) or None
        path.read(token)
    return None


class _Path:
    """Of each open container, the name or index of the member that is being read; "" where its name is to come."""

    def __init__(self) -> None:
        self._members: list[str | int] = []

    def read(self, token: re.Match[bytes]) -> None:
        """Go on to what follows the token."""
        if token["string"] is not None:
            if self._members and self._members[-1] == "":
                self._members[-1] = _unquoted(token["string"])
        elif token["open"] is not None:
            self._members.append("" if token["open"] == b"{" else 0)
        elif token["close"] is not None:
            del self._members[-1:]
        elif self._members and (commas := token[0].count(b",")):
            last = self._members[-1]
            self._members[-1] = last + commas if isinstance(last, int) else ""

    def to_member(self, commas: int) -> list[str | int]:
        """To what lies so many commas further on; to the container, where that is a name."""
        if not self._members:
            return []
        *outer, last = self._members
        if isinstance(last, int):
            return [*outer, last + commas]
        return [*outer, last] if last else outer


def _unquoted(string: bytes) -> str:
    try:
        name = json.loads(b'"' + string + b'"')
    except ValueError:
        return "?"
    return str(name) or "?"


def join(path: list[str | int] | tuple[str | int, ...]) -> str:
    """Join a path: ("messages", 0, "content") reads messages[0].content."""
    place = ""
    for part in path:
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else part
    return place


def repeated_name(document: bytes | bytearray, name: str) -> bool:
    """Tell whether an object has two members of this name. Very many members are not looked through."""
    depth, seen = 0, 0
    expects_name = True
    for number, token in enumerate(_TOKEN.finditer(document)):
        if number > _MAX_TOKENS:
            return False
        if token["string"] is not None:
            if depth == 1 and expects_name:
                seen += _unquoted(token["string"]) == name
                expects_name = False
        elif token["open"] is not None:
            depth += 1
        elif token["close"] is not None:
            depth -= 1
        elif depth == 1 and b"," in token[0]:
            expects_name = True
    return seen > 1
