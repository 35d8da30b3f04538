"""One streamed answer of /v1/completions, read as it comes: when each piece came, and what was counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from longspan.entrypoints.bench.event_stream import EventStream, EventTooLongError, ServerEvent

MAX_MESSAGE = 300  # characters of a server's error that are kept
MAX_BODY = 1 << 16  # bytes of an answer that is no stream that are looked at


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None

    @property
    def has_text(self) -> bool:
        return bool(self.text or (self.delta is not None and self.delta.content))


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


class _Piece(NamedTuple):
    time: float
    has_text: bool


class CompletionStream:
    """Feed it the body and tell it the end; then ask what came.

    What is a token? Servers differ: some send one piece for each token, also for one that gives no text; some open with
    an empty piece before anything is computed, or end with one that has the reason alone; some put several tokens into
    a piece. So the number of tokens is the server's own (usage) where it gives one, and times are those of pieces that
    brought output: empty ones at the beginning never did, empty ones later may be tokens without text, as far as the
    server's number has room for them.
    """

    def __init__(self) -> None:
        self.num_prompt_tokens: int | None = None
        self.error: str | None = None
        self._done = False
        self._has_reason = False
        self._pieces: list[_Piece] = []
        self._num_output_tokens: int | None = None
        self._events = EventStream()
        self._body = b""

    @property
    def complete(self) -> bool:
        """Whether the server said that it is complete: by [DONE], or by the reason of the end."""
        return self._done or self._has_reason

    @property
    def times(self) -> Sequence[float]:
        """The times at which the pieces of output came."""
        pieces, count = self._pieces, self._num_output_tokens
        if not any(piece.has_text for piece in pieces):
            return [piece.time for piece in pieces[:count]] if count is not None else []
        pieces = _from_first_text(pieces)
        while not pieces[-1].has_text and (count is None or len(pieces) > count):
            pieces.pop()
        if count is not None and len(pieces) > count:
            pieces = [piece for piece in pieces if piece.has_text]
        return [piece.time for piece in pieces]

    @property
    def num_output_tokens(self) -> int:
        """The count that the server gave; the number of pieces of output, if it gave none."""
        return len(self.times) if self._num_output_tokens is None else self._num_output_tokens

    @property
    def num_pieces(self) -> int:
        """The number of pieces so far, empty ones too."""
        return len(self._pieces)

    def feed(self, status: int, data: bytes, now: float) -> None:
        """Raises nothing: what cannot be read is an `error`."""
        if not self._pieces and len(self._body) < MAX_BODY:
            self._body += data[: MAX_BODY - len(self._body)]
        if status != 200:
            self.error = error_message(self._body) or f"status {status}"
        if self.error is not None:  # the first one says most
            return
        try:
            for event in self._events.feed(data, now):
                self._on_event(event)
        except EventTooLongError:
            self.error = "a piece of the stream is longer than any answer: it is no stream of /v1/completions"

    def end(self, now: float) -> None:
        """Note that the body has ended, with the answer or the connection. After an error status nothing is left."""
        if self.error is not None:
            return
        for event in self._events.end(now):
            self._on_event(event)
        if not self._pieces and not self._done and self.error is None and self._body.strip():
            self.error = f"the answer is no stream: {error_message(self._body)}"

    def _on_event(self, event: ServerEvent) -> None:
        if self.error is not None:
            return
        if event.data.strip() == b"[DONE]":
            self._done = True
            return
        if event.name == b"error":
            self.error = error_message(event.data) or "the server sent an error without a message"
            return
        try:
            chunk = _decode(event.data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            self.error = f"a piece of the stream is not what /v1/completions sends: {error}"[:MAX_MESSAGE]
            return
        if chunk.error is not None:
            self.error = error_message(event.data)
        if chunk.usage is not None:
            if chunk.usage.prompt_tokens is not None:
                self.num_prompt_tokens = chunk.usage.prompt_tokens
            if chunk.usage.completion_tokens is not None:
                self._num_output_tokens = chunk.usage.completion_tokens
        if chunk.choices:
            choice = chunk.choices[0]
            self._pieces.append(_Piece(event.time, choice.has_text))
            self._has_reason |= choice.finish_reason is not None


def _from_first_text(pieces: Sequence[_Piece]) -> list[_Piece]:
    first = next(place for place, piece in enumerate(pieces) if piece.has_text)
    return list(pieces[first:])


def error_message(body: bytes) -> str:
    """Return OpenAI's {"error": {"message": ...}}, or whatever the body says, in one line."""
    text = body.decode(errors="replace")
    try:
        content = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        content = None
    if isinstance(content, dict):
        found = content.get("error") or content
        text = str(found.get("message", found) if isinstance(found, dict) else found)
    return " ".join(text.split())[:MAX_MESSAGE]
