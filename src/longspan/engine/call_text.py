"""Calls of tools out of JSON that comes in pieces: their names, and their arguments as they are written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

NAMES, ARGUMENTS = ("name",), ("arguments", "parameters")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer.

    kind: text, what the model thinks, the beginning of a call (`text` is its name), or more of its arguments.
    """

    kind: Literal["content", "reasoning", "call", "arguments"]
    text: str


class CallText:
    """Reads one object {"name": ..., "arguments": {...}}, or a list of them, character by character: how the text is
    cut makes no difference. A call begins once its name is known; arguments that come before wait for it."""

    def __init__(self) -> None:
        self.num_calls = 0
        self._base = 0  # levels around a call: 1 in a list
        self._depth = 0
        self._string: list[str] | None = None  # the text that is being read
        self._escaped = False
        self._last_text = ""
        self._begin_call()

    def _begin_call(self) -> None:
        self._key: str | None = None
        self._is_value = False
        self._named = False
        self._in_arguments = False
        self._quoted = False  # arguments as a text, which is JSON itself
        self._waiting: list[str] = []  # for the name

    def feed(self, text: str) -> list[Piece]:
        """Return what is known now."""
        pieces: list[Piece] = []
        for char in text:
            level = self._depth - self._base  # before the character; 1 is inside a call, beside its members
            self._scan(char)
            self._follow(char, level, pieces)
        return joined(pieces)

    def _scan(self, char: str) -> None:
        if self._string is not None:
            self._string.append(char)
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            elif char == '"':
                self._last_text, self._string = "".join(self._string), None
        elif char == '"':
            self._string, self._escaped = [char], False
        elif char in "[{":
            self._base = 1 if self._depth == 0 and char == "[" else self._base
            self._depth += 1
        elif char in "]}":
            self._depth -= 1

    def _follow(self, char: str, level: int, pieces: list[Piece]) -> None:
        beside = level == 1 and self._string is None
        if self._in_arguments and beside and char in ",}":
            self._in_arguments = False
        elif not self._in_arguments and self._is_value and level == 1 and self._key in ARGUMENTS and not char.isspace():
            self._in_arguments = char not in ",}"
            self._quoted = char == '"'
        if self._in_arguments:
            self._take_argument(char, beside, pieces)
        elif beside:
            self._at_member(char, pieces)
        if level == 1 and self._depth == self._base:
            self._begin_call()

    def _take_argument(self, char: str, beside: bool, pieces: list[Piece]) -> None:
        if self._quoted:
            if beside and char == '"':
                self._say(_decoded(self._last_text) or "", pieces)
        elif not (beside and char.isspace()):  # white space behind the value is not part of it
            self._say(char, pieces)

    def _at_member(self, char: str, pieces: list[Piece]) -> None:
        if char == ":" and not self._is_value:
            self._key, self._is_value = _decoded(self._last_text), True
        elif char == '"' and self._is_value and self._key in NAMES and not self._named:
            self._named = True
            self.num_calls += 1
            pieces.append(Piece("call", _decoded(self._last_text) or ""))
            self._say("".join(self._waiting), pieces)
        elif char == ",":
            self._key, self._is_value = None, False

    def _say(self, text: str, pieces: list[Piece]) -> None:
        if not self._named:
            self._waiting.append(text)
        elif text:
            pieces.append(Piece("arguments", text))


def joined(pieces: list[Piece]) -> list[Piece]:
    """Neighbours of one kind are one, but each call begins anew."""
    found: list[Piece] = []
    for piece in pieces:
        if found and piece.kind == found[-1].kind != "call":
            found[-1] = Piece(piece.kind, found[-1].text + piece.text)
        else:
            found.append(piece)
    return found


def _decoded(text: str) -> str | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, str) else None
