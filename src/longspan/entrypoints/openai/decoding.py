"""From a body's bytes to a checked request: everything is measured before it is built.

The body is cut into its fields without building any of them; each field that is known is bounded by its bytes, counted,
and only then decoded; unknown ones are never decoded. What comes out of here can travel on: finite numbers, whole
Unicode, lists of a bounded length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from msgspec import UNSET, Raw, Struct, UnsetType
from pydantic import ValidationError

from longspan.entrypoints.openai.body_fields import cut_body
from longspan.entrypoints.openai.bounds import (
    MAX_ENVELOPE_BYTES,
    MAX_NODES,
    MAX_SCALAR_BYTES,
    MAX_STOPS_CHARS,
    Bounds,
)
from longspan.entrypoints.openai.json_counts import Counting, at_least_lists, at_least_strings, count_one
from longspan.entrypoints.openai.json_values import bounded, num_nodes, scalar, too_large, typed
from longspan.entrypoints.openai.messages import ChatMessage
from longspan.entrypoints.openai.problems import request_error
from longspan.entrypoints.openai.protocol import INT32_MAX, SamplingFields, whole
from longspan.entrypoints.openai.quoting import quoted
from longspan.entrypoints.openai.unsupported import refuse_unsupported
from longspan.errors import RequestError

R = TypeVar("R", bound=SamplingFields)
Decode = Callable[[bytes, str], Any]

LARGE_BODY = 32 * 1024
"""Bytes; a body beyond them is worth a thread."""

_STOPS_BYTES = MAX_STOPS_CHARS * 12
_TOOLS_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class BodyReader:
    """Turns bodies into requests, within the bounds of one server. Threads may share one."""

    bounds: Bounds

    def read(self, body: bytes | bytearray, content_type: str, kind: type[R]) -> R:
        """Raises RequestError, which names the field."""
        fields = self._decoded(cut_body(body, content_type, kind), kind)
        try:
            request = kind.model_validate(fields)
        except ValidationError as error:
            raise request_error(error) from None
        self._check_limits(fields)
        return request

    def _check_limits(self, fields: Mapping[str, Any]) -> None:
        for name in ("max_tokens", "max_completion_tokens"):
            if (fields.get(name) or 0) > self.bounds.prompt_tokens:
                raise RequestError(
                    f"{name} is {fields[name]}, but a request has at most {self.bounds.request_tokens} tokens here, "
                    "one of them at least for the prompt; lower it",
                    param=name, code="context_length_exceeded",
                )  # fmt: skip

    def _decoded(self, given: Mapping[str, Raw], kind: type[SamplingFields]) -> dict[str, Any]:
        special: dict[str, Decode] = {
            "messages": self._messages,
            "prompt": self._prompt,
            "stop": partial(bounded, max_bytes=_STOPS_BYTES),
            "stop_token_ids": partial(bounded, max_bytes=MAX_ENVELOPE_BYTES),
            "tools": partial(bounded, max_bytes=_TOOLS_BYTES),
            "tool_choice": partial(bounded, max_bytes=MAX_ENVELOPE_BYTES),
            "chat_template_kwargs": partial(bounded, max_bytes=MAX_ENVELOPE_BYTES),
        }
        fields = {}
        for name, cut in given.items():
            raw = bytes(cut)
            if name in kind.unsupported:
                refuse_unsupported(name, raw, kind.unsupported[name])
            else:
                fields[name] = special.get(name, scalar)(raw, name)
        return fields

    # -- prompts

    def _prompt(self, raw: bytes, place: str) -> list[str] | list[np.ndarray]:
        """A text, some texts, token ids, or some lists of token ids; always a list of prompts afterwards."""
        first = raw[:1]
        inner = raw[1:].lstrip()[:1] if first == b"[" else b""
        if first == b'"':
            return [self._text(raw, place)]
        if inner == b'"':
            self._check_count(at_least_strings, raw, place)
            texts: list[str] = typed(raw, list[str], place, _NO_PROMPT)
            for number, text in enumerate(texts):
                self._check_chars(len(text), f"{place}[{number}]")
            return texts
        if inner == b"[":
            self._check_count(at_least_lists, raw, place)
            lists = typed(raw, list[Raw], place, _NO_PROMPT)
            return [self._token_ids(bytes(ids), f"{place}[{number}]") for number, ids in enumerate(lists)]
        if inner and inner in b"-0123456789":
            return [self._token_ids(raw, place)]
        raise _no_prompt(place)

    def _token_ids(self, raw: bytes, place: str) -> np.ndarray:
        """int32; the engine knows which ids the model has."""
        count = raw.count(b",") + 1
        if count > self.bounds.prompt_tokens:
            raise too_long(place, f"{count} tokens", self.bounds)
        numbers: list[Any] = typed(raw, list[int | float], place, _NO_PROMPT)
        if b"." in raw or b"e" in raw or b"E" in raw:
            numbers = list(map(whole, numbers))  # 16.0 is a whole number in JSON
        ids = token_array(numbers, place)
        if len(ids) == 0:
            raise RequestError(f"{place} is empty; give it at least one token", param=place, code="empty_array")
        if ids.min() < 0 or ids.max() > INT32_MAX:
            raise _no_token_id(place)
        return ids.astype(np.int32)

    def _check_count(self, at_least: Callable[[bytes, int], bool], raw: bytes, place: str) -> None:
        if at_least(raw, self.bounds.choices + 1):
            raise RequestError(
                f"{place} has more than {self.bounds.choices} prompts, which is as many as can wait here; send several "
                "requests",
                param=place, code="array_above_max_length",
            )  # fmt: skip

    # -- texts

    def _text(self, raw: bytes, place: str) -> str:
        # No character takes more than 4 bytes, but those of escapes, each of which begins with a backslash.
        if (len(raw) - 2 - 6 * raw.count(b"\\")) / 4 > self.bounds.prompt_chars:
            raise too_long(place, f"{len(raw)} bytes", self.bounds)
        text: str = typed(raw, str, place)
        self._check_chars(len(text), place)
        return text

    def _check_chars(self, chars: int, place: str) -> None:
        if chars > self.bounds.prompt_chars:
            raise too_long(place, f"{chars} characters", self.bounds)

    # -- messages

    def _messages(self, raw: bytes, place: str) -> object:
        if not raw.startswith(b"["):
            return scalar(raw[:MAX_SCALAR_BYTES] if raw.startswith(b'"') else b"{}", place)  # of the wrong type
        with Counting(self.bounds.prompt_tokens, _too_many_messages(self.bounds)):
            cut = typed(raw, list[_Message], place)
        chars, nodes, messages = 0, 0, []
        for number, message in enumerate(cut):
            fields: dict[str, Any] = {}
            where = f"{place}[{number}]"
            for name in message.__struct_fields__:
                value: Raw | UnsetType = getattr(message, name)
                if value is UNSET:
                    continue
                content = bytes(value)
                if name in ChatMessage.unsupported:
                    refuse_unsupported(f"{where}.{name}", content, ChatMessage.unsupported[name])
                elif name in ("content", "refusal"):
                    text = fields[name] = self._content(content, f"{where}.{name}")
                    chars += len(text) if isinstance(text, str) else 0
                elif name == "tool_calls":
                    nodes += num_nodes(content)
                    if nodes > MAX_NODES:
                        raise too_large(f"{where}.{name}", "the tool calls of all messages hold more than can be read")
                    chars += len(content) // 12
                    fields[name] = typed(content, list[_ToolCall] | None, f"{where}.{name}")
                else:
                    fields[name] = scalar(content, f"{where}.{name}")
            if chars > self.bounds.prompt_chars:
                raise too_long(place, f"more than {chars} characters", self.bounds)
            messages.append(_validated(fields, where))
        return messages

    def _content(self, raw: bytes, place: str) -> object:
        """Content parts become one text, joined by newlines as in vLLM; parts other than text are refused."""
        if raw.startswith(b'"'):
            return self._text(raw, place)
        if not raw.startswith(b"["):
            return scalar(raw, place) if len(raw) < MAX_SCALAR_BYTES else {}
        with Counting(self.bounds.prompt_tokens, _too_many_messages(self.bounds)):
            parts = typed(raw, list[_Part], place)
        texts, chars = [], 0
        for number, part in enumerate(parts):
            kind = None if part.type is UNSET else scalar(bytes(part.type), f"{place}[{number}].type")
            if kind != "text":
                raise RequestError(
                    f"{place}: part {number} is of type {quoted(kind)}, but only parts of type 'text' are supported",
                    param=place, code="unsupported_value",
                )  # fmt: skip
            if part.text is UNSET or not bytes(part.text).startswith(b'"'):
                raise RequestError(f"{place}: part {number} has no text", param=place, code="invalid_type")
            texts.append(self._text(bytes(part.text), place))
            chars += len(texts[-1])
            self._check_chars(chars, place)
        return "\n".join(texts)


def too_long(place: str, size: str, bounds: Bounds) -> RequestError:
    """Return what is said of a text that cannot fit: as OpenAI does, of the whole prompt or messages."""
    what = "the prompt has" if place == "prompt" else "the messages have" if place == "messages" else f"{place} has"
    chars = "" if size.endswith("tokens") else f", which is {bounds.prompt_chars} characters at most"
    return RequestError(
        f"{what} {size}, but a request has at most {bounds.request_tokens} tokens here{chars}, "
        "one of them at least for the output; shorten it",
        param=place.partition("[")[0], code="context_length_exceeded",
    )  # fmt: skip


def token_array(ids: Sequence[int], place: str) -> np.ndarray:
    """Make an array in pieces, so that other threads get their turn between them."""
    pieces = [np.array(ids[start : start + 65536]) for start in range(0, len(ids), 65536)]
    if any(piece.dtype.kind != "i" for piece in pieces):  # beyond 64 bits, or with a fraction
        raise _no_token_id(place)
    return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)


def _no_token_id(place: str) -> RequestError:
    return RequestError(f"{place} holds a number that is no token id", param=place, code="invalid_value")


def _validated(fields: dict[str, Any], place: str) -> ChatMessage:
    try:
        message = ChatMessage.model_validate(fields)
        message.check(place)
        return message
    except ValidationError as error:
        found = request_error(error)
        where = f"{place}.{found.param}" if found.param else place
        said = str(found).replace(f"{found.param}: ", f"{where}: ", 1)
        raise RequestError(said, param=where, code=found.code) from None


class _Message(Struct, gc=False):
    role: Raw | UnsetType = UNSET
    content: Raw | UnsetType = UNSET
    name: Raw | UnsetType = UNSET
    tool_calls: Raw | UnsetType = UNSET
    tool_call_id: Raw | UnsetType = UNSET
    refusal: Raw | UnsetType = UNSET
    audio: Raw | UnsetType = UNSET
    function_call: Raw | UnsetType = UNSET

    def __post_init__(self) -> None:
        count_one()


class _Part(Struct, gc=False):
    type: Raw | UnsetType = UNSET
    text: Raw | UnsetType = UNSET

    def __post_init__(self) -> None:
        count_one()


class _CalledFunction(Struct, gc=False):
    name: str
    arguments: str


class _ToolCall(Struct, gc=False):
    function: _CalledFunction
    id: str | None = None
    type: str = "function"


def _too_many_messages(bounds: Bounds) -> RequestError:
    return RequestError(
        f"messages has more than {bounds.prompt_tokens} messages or parts, but a request has at most "
        f"{bounds.request_tokens} tokens here, one of them at least for the output; leave some out",
        param="messages", code="context_length_exceeded",
    )  # fmt: skip


_NO_PROMPT = "must be a text, texts, token ids, or lists of token ids; and not empty"


def _no_prompt(place: str) -> RequestError:
    return RequestError(f"{place}: {_NO_PROMPT}", param=place, code="invalid_type")
