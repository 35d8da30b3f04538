"""`input` of a request for a response: a text or items, measured before they are built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from secrets import token_hex
from typing import Any

from msgspec import UNSET, Raw, Struct, UnsetType

from longspan.entrypoints.openai.bounds import Bounds
from longspan.entrypoints.openai.json_counts import Counting, count_one
from longspan.entrypoints.openai.json_values import given, given_name, scalar, typed
from longspan.entrypoints.openai.quoting import quoted
from longspan.entrypoints.openai.text_decoding import TextReader, content, text, too_many
from longspan.entrypoints.responses.items import (
    FunctionCallItem,
    FunctionCallOutputItem,
    InputText,
    Item,
    MessageItem,
    OutputText,
    ReasoningItem,
    ReasoningText,
)
from longspan.errors import RequestError

ROLES = ("user", "assistant", "system", "developer")
PARTS = ("input_text", "output_text", "text", "refusal")


def input_items(bounds: Bounds, raw: bytes, place: str) -> list[Item]:
    """Return items, a text being a message of the user's. Raises RequestError, also for an unsupported item."""
    if raw.startswith(b'"'):
        return [_message("user", text(bounds, raw, place))]
    with Counting(bounds.prompt_tokens, too_many(bounds, place)):
        cut = typed(raw, list[_Item], place, "must be a text, or a list of items")
    if not cut:
        raise RequestError(f"{place} is empty; give it at least one item", param=place, code="empty_array")
    reader = _Reader(TextReader(bounds, place, "items"))
    return [reader.read(item, f"{place}[{number}]") for number, item in enumerate(cut)]


class _Item(Struct, gc=False):
    type: Raw | UnsetType = UNSET
    id: Raw | UnsetType = UNSET
    role: Raw | UnsetType = UNSET
    content: Raw | UnsetType = UNSET
    call_id: Raw | UnsetType = UNSET
    name: Raw | UnsetType = UNSET
    arguments: Raw | UnsetType = UNSET
    output: Raw | UnsetType = UNSET
    summary: Raw | UnsetType = UNSET

    def __post_init__(self) -> None:
        count_one()


class _Reader:
    """Reads one item after the other."""

    def __init__(self, texts: TextReader) -> None:
        self._texts = texts

    def read(self, item: _Item, place: str) -> Item:
        kind = "message" if item.type is UNSET else scalar(bytes(item.type), f"{place}.type")
        read = _KINDS.get(kind) if isinstance(kind, str) else None
        if read is None:
            told = ", ".join(_KINDS)
            raise RequestError(
                f"{place}: an item of type {quoted(kind)} is not supported; those of type {told} are",
                param=f"{place}.type", code="unsupported_value",
            )  # fmt: skip
        return read(self, item, place)

    def message(self, item: _Item, place: str) -> Item:
        where = f"{place}.role"
        role = scalar(given(item.role, where), where)
        if role not in ROLES:
            raise RequestError(f"{where} must be one of {', '.join(ROLES)}, not {quoted(role)}", param=where,
                               code="unsupported_value")  # fmt: skip
        said = self._content(item.content, f"{place}.content", PARTS)
        return _message(role, said, _id(item, place, "msg"))

    def call(self, item: _Item, place: str) -> Item:
        where = f"{place}.arguments"
        raw = given(item.arguments, where)
        self._texts.count_call(raw, where)
        arguments = self._texts.text(raw, where)
        name, call_id = given_name(item.name, f"{place}.name"), given_name(item.call_id, f"{place}.call_id")
        return FunctionCallItem(_id(item, place, "fc"), call_id, name, arguments)

    def call_output(self, item: _Item, place: str) -> Item:
        said = self._content(item.output, f"{place}.output", PARTS)
        return FunctionCallOutputItem(_id(item, place, "fco"), given_name(item.call_id, f"{place}.call_id"), said)

    def reasoning(self, item: _Item, place: str) -> Item:
        """What was thought; where only a summary of it is given, that."""
        said = ""
        for name, kind in (("content", "reasoning_text"), ("summary", "summary_text")):
            raw = getattr(item, name)
            if not said and raw is not UNSET and bytes(raw) != b"null":
                said = self._content(raw, f"{place}.{name}", (kind, "text"))
        return ReasoningItem(_id(item, place, "rs"), [ReasoningText(said)] if said else [])

    def _content(self, raw: Raw | UnsetType, place: str, kinds: tuple[str, ...]) -> str:
        found = content(self._texts.bounds, given(raw, place), place, kinds)
        if not isinstance(found, str):
            raise RequestError(f"{place} must be a text, or a list of parts", param=place, code="invalid_type")
        self._texts.count(len(found))
        return found


_KINDS: Mapping[str, Callable[[_Reader, _Item, str], Item]] = {
    "message": _Reader.message,
    "function_call": _Reader.call,
    "function_call_output": _Reader.call_output,
    "reasoning": _Reader.reasoning,
}


def _message(role: Any, said: str, item_id: str | None = None) -> MessageItem:
    part = OutputText(said) if role == "assistant" else InputText(said)
    return MessageItem(item_id or f"msg_{token_hex(12)}", role, [part])


def _id(item: _Item, place: str, kind: str) -> str:
    """The client's, or a new one."""
    if item.id is UNSET or bytes(item.id) == b"null":
        return f"{kind}_{token_hex(12)}"
    return given_name(item.id, f"{place}.id")
