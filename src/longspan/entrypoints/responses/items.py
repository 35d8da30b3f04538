"""Items of OpenAI's Responses API, which go in and come out, as clients get them and as chat templates read them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import msgspec
from msgspec import Struct

from longspan.entrypoints.openai.messages import CalledFunction, CalledTool, ChatMessage

Status = Literal["in_progress", "completed", "incomplete"]


class InputText(Struct, tag="input_text"):
    text: str


class OutputText(Struct, tag="output_text"):
    """No answer cites anything; its log-probabilities are those of /v1/chat/completions only."""

    text: str
    annotations: list[Any] = []
    logprobs: list[Any] = []


class ReasoningText(Struct, tag="reasoning_text"):
    text: str


class MessageItem(Struct, tag="message"):
    """A message of anybody's. `content` is one part by now."""

    id: str
    role: Literal["system", "developer", "user", "assistant"]
    content: list[InputText | OutputText]
    status: Status = "completed"


class FunctionCallItem(Struct, tag="function_call"):
    """`arguments` is JSON, as the model wrote it."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: Status = "completed"


class FunctionCallOutputItem(Struct, tag="function_call_output"):
    """What a call has come to."""

    id: str
    call_id: str
    output: str
    status: Status = "completed"


class ReasoningItem(Struct, tag="reasoning"):
    """What the model thought, as it is: there is no summary of it."""

    id: str
    content: list[ReasoningText]
    summary: list[Any] = []
    status: Status = "completed"


Item = MessageItem | FunctionCallItem | FunctionCallOutputItem | ReasoningItem
OutputItem = MessageItem | FunctionCallItem | ReasoningItem

encode_items = msgspec.json.Encoder().encode
decode_items = msgspec.json.Decoder(list[Item]).decode


def conversation(items: Iterable[Item]) -> list[ChatMessage]:
    """Return items as a chat's messages: what the assistant thinks, says and calls in a row is one message."""
    found: list[ChatMessage] = []
    turn: ChatMessage | None = None  # the assistant's, which may go on
    for item in items:
        if isinstance(item, FunctionCallOutputItem):
            turn = None
            found.append(ChatMessage.model_construct(role="tool", content=item.output, tool_call_id=item.call_id))
        elif isinstance(item, MessageItem) and item.role != "assistant":
            turn = None
            found.append(ChatMessage.model_construct(role=item.role, content=_text(item)))
        else:
            if turn is None or not _goes_on(turn, item):
                turn = ChatMessage.model_construct(role="assistant")
                found.append(turn)
            _add(turn, item)
    return found


def _goes_on(turn: ChatMessage, item: Item) -> bool:
    """Whether an item is part of the turn: first come thoughts, then text, then calls, each of them at most once but
    the calls."""
    if isinstance(item, FunctionCallItem):
        return True
    if turn.tool_calls or turn.content is not None:
        return False
    return isinstance(item, MessageItem) or turn.reasoning_content is None


def _add(turn: ChatMessage, item: Item) -> None:
    if isinstance(item, FunctionCallItem):
        call = CalledTool(CalledFunction(item.name, item.arguments), item.call_id)
        turn.tool_calls = [*(turn.tool_calls or ()), call]
    elif isinstance(item, MessageItem):
        turn.content = _text(item)
    elif isinstance(item, ReasoningItem):
        turn.reasoning_content = "\n".join(part.text for part in item.content)


def _text(item: MessageItem) -> str:
    return "\n".join(part.text for part in item.content)
