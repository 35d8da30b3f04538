"""`longspan chat`: talk to a running server, on a terminal or through a pipe."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx2

from longspan.entrypoints.client import base_of, make_client
from longspan.entrypoints.trust import no_connection
from longspan.errors import ConfigError, LongspanError

CONNECT_TIMEOUT_S = 5.0  # answers may take as long as they need: a long prompt is prefilled first
HELP = "/reset forgets the conversation, /exit leaves, Ctrl-C stops an answer"
SHOWN_CHARS = 300  # of what a server says that is no OpenAI-compatible one


class ChatError(LongspanError):
    """The server is not there, or refused."""


class Conversation:
    """Messages so far, with the server that answers them."""

    def __init__(
        self, url: str, model: str | None, system: str | None, temperature: float, api_key: str | None = None
    ) -> None:
        """Raises ConfigError, ChatError."""
        self.url = base_of(url)
        self.client = make_client(self.url, api_key, httpx2.Timeout(None, connect=CONNECT_TIMEOUT_S))
        self.system = None if system is None else as_text(system)
        self.temperature = temperature
        self.model = model or self._served_model()
        self.reset()

    def reset(self) -> None:
        self.messages = [] if self.system is None else [{"role": "system", "content": self.system}]

    def answer(self, text: str) -> Generator[str, None, None]:
        """Yield the pieces of the answer. It is remembered as far as it came, also when the reader stops early."""
        self.messages.append({"role": "user", "content": as_text(text)})
        pieces: list[str] = []
        try:
            for piece in self._stream():
                pieces.append(piece)
                yield piece
        finally:
            if pieces:
                self.messages.append({"role": "assistant", "content": "".join(pieces)})
            else:
                self.messages.pop()

    def _stream(self) -> Iterator[str]:
        """Raises ChatError: the server refuses, goes away, or says what no such server says."""
        body = {
            "model": self.model, "messages": self.messages, "temperature": self.temperature, "stream": True
        }
        with (
            self._failures_told(),
            self.client.stream("POST", f"{self.url}/v1/chat/completions", json=body) as response,
        ):
            if response.status_code != 200:
                response.read()
                raise ChatError(_error_message(response))
            ended = False
            for event in httpx2.EventSource(response):
                data = event.data.strip()
                if data == "[DONE]":
                    return
                if not data:
                    continue
                piece, finished = _piece(data)
                ended |= finished
                if piece:
                    yield piece
            if not ended:
                raise ChatError("the server ended the answer in the middle")

    def _served_model(self) -> str:
        with self._failures_told():
            response = self.client.get(f"{self.url}/v1/models")
        if response.status_code != 200:
            raise ChatError(_error_message(response))
        try:
            return str(response.json()["data"][0]["id"])
        except (ValueError, LookupError, TypeError) as error:
            raise ChatError(f"what answers at {self.url} is not an OpenAI-compatible server") from error

    @contextmanager
    def _failures_told(self) -> Iterator[None]:
        try:
            yield
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.InvalidURL) as error:
            why = no_connection(self.url, error)
            hint = "; start one with: longspan serve" if why.startswith("no server") else ""
            raise ChatError(f"{why}{hint}") from error
        except httpx2.SSEError as error:
            raise ChatError(f"what answers at {self.url} is not an OpenAI-compatible server: {error}") from error
        except httpx2.HTTPError as error:
            raise ChatError(f"the connection to {self.url} broke: {error or type(error).__name__}") from error


def as_text(text: str) -> str:
    """Return text as a terminal gives it: bytes that are no UTF-8 come as surrogates, which no JSON can carry."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def chat(url: str, model: str | None, system: str | None, temperature: float, api_key: str | None = None) -> int:
    """Chat until /exit or the end of the input; returns the exit code: 1 if an answer failed."""
    if not 0 <= temperature < float("inf"):
        raise ConfigError(f"temperature is {temperature}, but must be at least 0")
    conversation = Conversation(url, model, system, temperature, api_key)
    if sys.stdin is None:
        raise ConfigError("there is nothing to read messages from: standard input is closed")
    interactive = sys.stdin.isatty()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    if interactive:
        with suppress(ImportError):
            import readline  # noqa: F401  (line editing and history for input())
        print(f"{conversation.model} at {conversation.url}. {HELP}.")
    failed = False
    for line in _lines(interactive):
        match line.strip():
            case "":
                pass
            case "/exit" | "/quit":
                break
            case "/reset":
                conversation.reset()
            case "/help" | "/?":
                print(HELP)
            case text:
                failed |= not _print_answer(conversation, text, interactive)
    return 1 if failed else 0


def _lines(interactive: bool) -> Iterator[str]:
    """Each line is one message. Ctrl-C at the prompt drops the line, Ctrl-D ends."""
    if not interactive:
        yield from sys.stdin
        return
    while True:
        try:
            yield input("\n> ")
        except KeyboardInterrupt:
            print(f"\n({HELP})")
        except EOFError:
            print()
            return


def _print_answer(conversation: Conversation, text: str, interactive: bool) -> bool:
    pieces = conversation.answer(text)
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
        print()
    except KeyboardInterrupt:
        if not interactive:
            raise
        print(" [stopped]")
    except ChatError as error:
        print(f"longspan: {error}", file=sys.stderr)
        return False
    finally:
        pieces.close()
    return True


def _piece(data: str) -> tuple[str, bool]:
    """(text, whether a reason of the end came with it) of one chunk. Raises ChatError."""
    try:
        chunk: Any = json.loads(data)
        if chunk.get("error") is not None:
            raise ChatError(_message_of(chunk) or data[:SHOWN_CHARS])
        choices = chunk.get("choices") or []
        text = "".join((choice.get("delta") or {}).get("content") or "" for choice in choices)
        return text, any(choice.get("finish_reason") is not None for choice in choices)
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ChatError(f"the server sent what is no piece of a chat: {data[:SHOWN_CHARS]}") from error


def _error_message(response: httpx2.Response) -> str:
    try:
        found = _message_of(response.json())
    except (ValueError, RecursionError):
        found = None
    if response.status_code in (401, 403) and found:
        return f"{found} (give a key with --api-key, LONGSPAN_CHAT_API_KEY or OPENAI_API_KEY)"
    return found or f"the server answered with status {response.status_code}"


def _message_of(content: Any) -> str | None:
    error = content.get("error") if isinstance(content, dict) else None
    if isinstance(error, dict):
        return str(error.get("message") or error)
    return str(error) if error else None
