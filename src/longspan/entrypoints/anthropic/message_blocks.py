"""Messages of Anthropic's API, which are rows of blocks: measured before they are built, and made a chat's messages."""

from __future__ import annotations

from dataclasses import dataclass, field

from msgspec import UNSET, Raw, Struct, UnsetType

from longspan.entrypoints.openai.bounds import MAX_DEPTH, Bounds
from longspan.entrypoints.openai.json_counts import Counting, count_one
from longspan.entrypoints.openai.json_values import bounded, given, given_name, no_text, scalar, typed
from longspan.entrypoints.openai.messages import CalledFunction, CalledTool, ChatMessage
from longspan.entrypoints.openai.quoting import quoted
from longspan.entrypoints.openai.text_decoding import TextReader, content, too_many
from longspan.errors import RequestError

KINDS = {"user": ("text", "tool_result"), "assistant": ("text", "thinking", "tool_use")}


def system(bounds: Bounds, raw: bytes, place: str) -> object:
    """Return the system prompt, one text."""
    return content(bounds, raw, place)


def messages(bounds: Bounds, raw: bytes, place: str) -> list[ChatMessage]:
    """Return what chat templates can write. Raises RequestError, also for blocks that are not supported."""
    with Counting(bounds.prompt_tokens, too_many(bounds, place)):
        cut = typed(raw, list[_Message], place)
    if not cut:
        raise RequestError(f"{place} is empty; give it at least one message", param=place, code="empty_array")
    reader = _Reader(TextReader(bounds, place, "messages"))
    for number, message in enumerate(cut):
        where = f"{place}[{number}]"
        role = _role(message, where)
        reader.read(role, given(message.content, f"{where}.content"), f"{where}.content")
    return reader.found


class _Reader:
    """Reads one message after the other."""

    def __init__(self, texts: TextReader) -> None:
        self.found: list[ChatMessage] = []
        self._texts = texts
        self._bounds = texts.bounds

    def read(self, role: str, raw: bytes, place: str) -> None:
        turn = _Turn()
        if raw.startswith(b"["):
            with Counting(self._bounds.prompt_tokens, too_many(self._bounds, self._texts.place)):
                blocks = typed(raw, list[_Block], place)
            if not blocks and role == "user":
                raise RequestError(f"{place} is empty; give it at least one block", param=place, code="empty_array")
            for number, block in enumerate(blocks):
                self._read_block(role, block, f"{place}[{number}]", turn)
        else:
            turn.texts.append(self._texts.text(raw, place))
        if role == "user":
            self._end_user_text(turn)
        else:
            self.found.append(turn.of_assistant())

    def _read_block(self, role: str, block: _Block, place: str, turn: _Turn) -> None:
        kind = scalar(given(block.type, f"{place}.type"), f"{place}.type")
        if kind not in KINDS[role]:
            told = ", ".join(KINDS[role])
            raise RequestError(
                f"{place}: a block of type {quoted(kind)} is not supported; the {role}'s are {told} here",
                param=f"{place}.type", code="unsupported_value",
            )  # fmt: skip
        if kind == "text":
            turn.texts.append(self._texts.text(given(block.text, f"{place}.text"), f"{place}.text"))
        elif kind == "thinking":
            thought = given(block.thinking, f"{place}.thinking")
            turn.thoughts.append(self._texts.text(thought, f"{place}.thinking"))
        elif kind == "tool_use":
            turn.calls.append(self._call(block, place))
        else:
            self._end_user_text(turn)
            self.found.append(self._result(block, place))

    def _end_user_text(self, turn: _Turn) -> None:
        if turn.texts:
            self.found.append(ChatMessage.model_construct(role="user", content="\n".join(turn.texts)))
            turn.texts.clear()

    def _result(self, block: _Block, place: str) -> ChatMessage:
        call_id = given_name(block.tool_use_id, f"{place}.tool_use_id")
        said: object = ""
        if block.content is not UNSET:
            said = content(self._bounds, bytes(block.content), f"{place}.content")
        if not isinstance(said, str):
            raise no_text(f"{place}.content")
        self._texts.count(len(said))
        return ChatMessage.model_construct(role="tool", content=said, tool_call_id=call_id)

    def _call(self, block: _Block, place: str) -> CalledTool:
        where = f"{place}.input"
        raw = given(block.input, where)
        self._texts.count_call(raw, where)
        self._texts.count(len(raw) // 12)
        if not isinstance(bounded(raw, where, max_bytes=self._bounds.prompt_bytes, max_depth=MAX_DEPTH), dict):
            raise RequestError(f"{where} must be an object", param=where, code="invalid_type")
        name = given_name(block.name, f"{place}.name")
        return CalledTool(CalledFunction(name, raw.decode()), given_name(block.id, f"{place}.id"))


@dataclass
class _Turn:
    """What one message has, as far as it is read."""

    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[CalledTool] = field(default_factory=list)

    def of_assistant(self) -> ChatMessage:
        return ChatMessage.model_construct(
            role="assistant",
            content="\n".join(self.texts) if self.texts else None,
            reasoning_content="\n".join(self.thoughts) if self.thoughts else None,
            tool_calls=self.calls or None,
        )


class _Message(Struct, gc=False):
    role: Raw | UnsetType = UNSET
    content: Raw | UnsetType = UNSET

    def __post_init__(self) -> None:
        count_one()


class _Block(Struct, gc=False):
    type: Raw | UnsetType = UNSET
    text: Raw | UnsetType = UNSET
    thinking: Raw | UnsetType = UNSET
    id: Raw | UnsetType = UNSET
    name: Raw | UnsetType = UNSET
    input: Raw | UnsetType = UNSET
    tool_use_id: Raw | UnsetType = UNSET
    content: Raw | UnsetType = UNSET

    def __post_init__(self) -> None:
        count_one()


def _role(message: _Message, place: str) -> str:
    role = scalar(given(message.role, f"{place}.role"), f"{place}.role")
    if role not in ("user", "assistant"):
        said = "; the system prompt is the field system" if role == "system" else ""
        raise RequestError(f"{place}.role must be 'user' or 'assistant', not {quoted(role)}{said}",
                           param=f"{place}.role", code="unsupported_value")  # fmt: skip
    return str(role)
