"""An answer, as it comes, cut into what the model thinks, what it says, and the tools that it calls."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from longspan.engine.call_text import ARGUMENTS, CallText, Piece, joined
from longspan.engine.chat_format import CALLS, CONTENT, REASONING, Template

logger = logging.getLogger(__name__)


class AnswerReader(Protocol):
    """Reads one answer. How its text is cut makes no difference to what the pieces are together."""

    def feed(self, text: str) -> list[Piece]:
        """Return what is known now."""
        ...

    def finish(self) -> list[Piece]:
        """Return what was kept back, when no more text comes."""
        ...


class PlainReader:
    """All of it is text."""

    def feed(self, text: str) -> list[Piece]:
        return [Piece("content", text)] if text else []

    def finish(self) -> list[Piece]:
        return []


class NamedCallReader:
    """All of it is the arguments of one call."""

    def __init__(self, name: str) -> None:
        self._begin: list[Piece] = [Piece("call", name)]

    def feed(self, text: str) -> list[Piece]:
        begin, self._begin = self._begin, []
        return begin + ([Piece("arguments", text)] if text else [])

    def finish(self) -> list[Piece]:
        return self.feed("")


class CallsReader:
    """All of it is a list of calls."""

    def __init__(self) -> None:
        self._calls = CallText()

    def feed(self, text: str) -> list[Piece]:
        return self._calls.feed(text)

    def finish(self) -> list[Piece]:
        return []


class TemplateReader:
    """By a response template, with transformers' parser. White space beside what is no text is dropped.

    template: see `ChatFormat.reads`. prefix: the end of the prompt that is the beginning of the answer. tools: whose
    schemas say of what types arguments are, where the model does not write JSON.
    """

    def __init__(self, template: Template, prefix: str, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        from transformers.utils.chat_parsing import ResponseParser

        self._fields: Template = template["fields"]
        self._parser = ResponseParser(template, prefix=prefix, tools=[dict(tool) for tool in tools])
        self._calls = CallText()
        self._raw = ""  # of the region of calls that is open
        self._space = ""  # that may have to be dropped
        self._drops_space = False
        self._failed = False
        for event in self._parser.initial_events:
            self._take(event)

    def feed(self, text: str) -> list[Piece]:
        return self._read(lambda: self._parser.feed(text), text)

    def finish(self) -> list[Piece]:
        pieces = self._read(lambda: self._parser.finalize()[1], "")
        if self._space and not self._drops_space:
            pieces.append(Piece("content", self._space))
        return joined(pieces)

    def _read(self, read: Callable[[], list[dict[str, Any]]], text: str) -> list[Piece]:
        if self._failed:
            return self._text("content", text)
        try:
            events = read()
        except Exception as error:  # of a template's own: what it cannot read is text
            logger.debug("an answer cannot be read by its template: %s", error)
            self._failed = True
            raw, self._raw = self._raw, ""
            return self._text("content", raw + text)
        return joined([piece for event in events for piece in self._take(event)])

    def _take(self, event: Mapping[str, Any]) -> list[Piece]:
        field, kind = event["field"], event["type"]
        if field == CALLS:
            return self._take_call(event)
        if field not in (CONTENT, REASONING):
            return []
        if kind == "region_chunk":
            return self._text("content" if field == CONTENT else "reasoning", event["text"])
        if field == REASONING:
            self._space, self._drops_space = "", True
        return []

    def _text(self, kind: Any, text: str) -> list[Piece]:
        """White space waits: it is dropped at the beginning and the end of a region, and beside one."""
        text = self._space + text
        if self._drops_space:
            text = text.lstrip()
        kept = text.rstrip()
        self._space = text[len(kept) :]
        if not kept:
            return []
        self._drops_space = False
        return [Piece(kind, kept)]

    def _take_call(self, event: Mapping[str, Any]) -> list[Piece]:
        if event["type"] == "region_open":
            self._space, self._raw, self._calls = "", "", CallText()
            return []
        if event["type"] == "region_chunk":
            self._raw += event["text"]
            return self._calls.feed(event["text"]) if self._is_json else []
        self._drops_space = True
        if self._calls.num_calls:
            return []
        if pieces := _calls(event["value"]):
            return pieces
        field = self._fields[CALLS]
        self._drops_space = False
        return self._text("content", f"{_literal(field.get('open'))}{self._raw}{_literal(field.get('close'))}")

    @property
    def _is_json(self) -> bool:
        field = self._fields[CALLS]
        odd = {"string_delims", "unquoted_keys"} & {*field.get("content_args", ())}
        return field.get("content") == "json" and not odd and field.get("transform") in _ITSELF


_ITSELF = (None, "{content}", {"type": "function", "function": "{content}"})
"""Transforms of a region that has a whole call: with any other one it may hold the arguments alone."""


def _literal(anchor: object) -> str:
    return anchor if isinstance(anchor, str) else ""


def _calls(value: Any) -> list[Piece]:
    """What a template makes of a region: a call, or some; none where it is neither."""
    pieces: list[Piece] = []
    for one in value if isinstance(value, list) else [value]:
        call = one.get("function", one) if isinstance(one, dict) else None
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return []
        arguments: Any = next((call[name] for name in ARGUMENTS if name in call), {})
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        pieces += [Piece("call", call["name"]), Piece("arguments", text)]
    return pieces
