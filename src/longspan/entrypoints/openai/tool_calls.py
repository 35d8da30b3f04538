"""One choice of a chat answer: its text, what the model thinks, and the tools that it calls, as clients get them."""

from __future__ import annotations

from secrets import token_hex

from msgspec import UNSET

from longspan.core.events import FinishReason
from longspan.engine.answer_parser import AnswerReader, CallsReader, NamedCallReader, PlainReader, TemplateReader
from longspan.engine.call_text import Piece
from longspan.engine.chat_format import ChatFormat
from longspan.engine.thoughtful_reader import ThoughtfulReader
from longspan.entrypoints.openai.answers import (
    AnswerMessage,
    CalledFunction,
    CalledFunctionDelta,
    ChatFinishReason,
    Delta,
    ToolCall,
    ToolCallDelta,
)
from longspan.entrypoints.openai.tool_use import ToolUse


def reader_for(tools: ToolUse, chat_format: ChatFormat, prompt: str, *, structured: bool) -> AnswerReader:
    """Return what reads an answer.

    prompt: its end at least, as the chat template wrote it. structured: whether a grammar says what the answer is.
    """
    if structured:
        end = chat_format.end_of_thoughts(prompt)
        return _of_grammar(tools) if end is None else ThoughtfulReader(end, _of_grammar(tools))
    template = chat_format.reads(bool(tools.offered))
    return PlainReader() if template is None else TemplateReader(template, chat_format.prefix(prompt), tools.offered)


def _of_grammar(tools: ToolUse) -> AnswerReader:
    """What has the form that was demanded: whatever it looks like, it is that."""
    if tools.named is not None:
        return NamedCallReader(tools.named)
    return CallsReader() if tools.demands_calls else PlainReader()


class PieceReader:
    """One choice's output, cut into pieces. Calls beyond the most that are wanted are left out.

    num_calls: how many have begun. is_named: whether there is but the one that was demanded.
    """

    def __init__(self, tools: ToolUse, reader: AnswerReader) -> None:
        self._reader = reader
        self._most_calls = None if tools.parallel else 1
        self._begun = 0
        self.is_named = tools.named is not None

    @property
    def num_calls(self) -> int:
        return self._begun if self._most_calls is None else min(self._begun, self._most_calls)

    def take(self, text: str, finished: bool) -> list[Piece]:
        """Return what is new."""
        pieces = self._reader.feed(text)
        if finished:
            pieces += self._reader.finish()
        return [piece for piece in pieces if self._is_wanted(piece)]

    def _is_wanted(self, piece: Piece) -> bool:
        self._begun += piece.kind == "call"
        is_of_call = piece.kind in ("call", "arguments")
        return not (is_of_call and self._most_calls is not None and self._begun > self._most_calls)


class ChoiceReader:
    """One choice of a chat, as chunks and as a whole message."""

    def __init__(self, reader: PieceReader) -> None:
        self._reader = reader
        self._text: dict[str, list[str]] = {"content": [], "reasoning": []}
        self._calls: list[tuple[str, str, list[str]]] = []

    def take(self, text: str, finished: bool) -> Delta:
        """Return what is new. What has no text yet is an empty piece of content, because clients count them."""
        delta = Delta()
        for piece in self._reader.take(text, finished):
            self._add(piece, delta)
        if delta.content is UNSET and delta.reasoning_content is UNSET and delta.tool_calls is UNSET:
            delta.content = ""
        return delta

    def _add(self, piece: Piece, delta: Delta) -> None:
        if piece.kind == "content":
            self._text["content"].append(piece.text)
            delta.content = piece.text if delta.content is UNSET else f"{delta.content}{piece.text}"
        elif piece.kind == "reasoning":
            self._text["reasoning"].append(piece.text)
            before = "" if delta.reasoning_content is UNSET else delta.reasoning_content
            delta.reasoning_content = f"{before}{piece.text}"
        else:
            self._add_call(piece, delta)

    def _add_call(self, piece: Piece, delta: Delta) -> None:
        if delta.tool_calls is UNSET:
            delta.tool_calls = []
        if piece.kind == "call":
            call_id = f"call_{token_hex(12)}"
            index = len(self._calls)
            self._calls.append((call_id, piece.text, []))
            function = CalledFunctionDelta(name=piece.text, arguments="")
            delta.tool_calls.append(ToolCallDelta(index, function, id=call_id, type="function"))
            return
        index = len(self._calls) - 1
        self._calls[index][2].append(piece.text)
        if delta.tool_calls and delta.tool_calls[-1].index == index:
            delta.tool_calls[-1].function.arguments += piece.text
        else:
            delta.tool_calls.append(ToolCallDelta(index, CalledFunctionDelta(arguments=piece.text)))

    def finish_reason(self, reason: FinishReason | None) -> ChatFinishReason | None:
        """Return why it ended, to clients: with calls, unless it had to make just this one, or was cut off."""
        return "tool_calls" if reason == "stop" and self._calls and not self._reader.is_named else reason

    def message(self) -> AnswerMessage:
        """Return all of it."""
        content = "".join(self._text["content"])
        message = AnswerMessage(content if content or not self._calls else None)
        if thought := "".join(self._text["reasoning"]):
            message.reasoning_content = thought
        if self._calls:
            message.tool_calls = [
                ToolCall(call_id, CalledFunction(name, "".join(arguments))) for call_id, name, arguments in self._calls
            ]
        return message
