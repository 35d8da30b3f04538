"""One streamed answer of /v1/completions, read as it comes: when each piece came, and what was counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

MAX_MESSAGE = 300  # characters of a server's error that are kept


class _Choice(msgspec.Struct):
    text: str | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


class CompletionStream:
    """Feed it the body; then ask what came.

    A server sends one piece for each token, also for one that gives no text; some send a last empty piece with
    the reason of the end alone, which is told by the number of tokens, and left out.
    """

    def __init__(self) -> None:
        self.num_prompt_tokens: int | None = None
        self.complete = False
        self.error: str | None = None
        self._times: list[float] = []
        self._num_output_tokens: int | None = None
        self._ends_empty = False
        self._rest = b""

    @property
    def times(self) -> Sequence[float]:
        """When each piece of output came."""
        if self._ends_empty and self._num_output_tokens is not None and len(self._times) > self._num_output_tokens:
            return self._times[:-1]
        return self._times

    @property
    def num_output_tokens(self) -> int:
        """As the server counted; as many as pieces came, if it did not."""
        return len(self._times) if self._num_output_tokens is None else self._num_output_tokens

    def feed(self, status: int, data: bytes, now: float) -> None:
        if status != 200:
            self._rest += data
            self.error = error_message(self._rest) or f"status {status}"
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._on_event(line[5:].strip(), now)

    def _on_event(self, data: bytes, now: float) -> None:
        if data == b"[DONE]":
            self.complete = True
            return
        try:
            chunk = _decode(data)
        except msgspec.DecodeError as error:
            self.error = f"a piece of the stream is not what /v1/completions sends: {error}"
            return
        if chunk.error is not None:
            self.error = error_message(data)
        if chunk.usage is not None:
            self.num_prompt_tokens = chunk.usage.prompt_tokens
            self._num_output_tokens = chunk.usage.completion_tokens
        if chunk.choices:
            self._times.append(now)
            choice = chunk.choices[0]
            self._ends_empty = not choice.text and choice.finish_reason is not None


def error_message(body: bytes) -> str:
    """OpenAI's {"error": {"message": ...}}, or whatever the body says, in one line."""
    text = body.decode(errors="replace")
    try:
        content = msgspec.json.decode(body)
    except msgspec.DecodeError:
        content = None
    if isinstance(content, dict):
        found = content.get("error", content)
        text = str(found.get("message", found) if isinstance(found, dict) else found)
    return " ".join(text.split())[:MAX_MESSAGE]
