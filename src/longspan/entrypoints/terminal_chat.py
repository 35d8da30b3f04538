"""`longspan chat`: talk to a running server, on a terminal or through a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import httpx2

from longspan.errors import LongspanError

CONNECT_TIMEOUT_S = 5.0  # answers may take as long as they need: a long prompt is prefilled first
HELP = "/reset forgets the conversation, /exit leaves, Ctrl-C stops an answer"


class ChatError(LongspanError):
    """The server is not there, or refused."""


class Conversation:
    """Messages so far, with the server that answers them."""

    def __init__(self, url: str, model: str | None, system: str | None, temperature: float) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        local = urlsplit(self.url).hostname in ("127.0.0.1", "localhost", "::1")
        timeout = httpx2.Timeout(None, connect=CONNECT_TIMEOUT_S)
        self.client = httpx2.Client(timeout=timeout, trust_env=not local)  # no proxy leads to this machine
        self.system = system
        self.temperature = temperature
        self.model = model or self._served_model()
        self.reset()

    def reset(self) -> None:
        self.messages = [] if self.system is None else [{"role": "system", "content": self.system}]

    def answer(self, text: str) -> Generator[str, None, None]:
        """The pieces of the answer. It is remembered as far as it came, also when the reader stops early."""
        self.messages.append({"role": "user", "content": text})
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
        body = {
            "model": self.model, "messages": self.messages, "temperature": self.temperature, "stream": True
        }
        try:
            with self.client.stream("POST", f"{self.url}/v1/chat/completions", json=body) as response:
                if response.status_code != 200:
                    response.read()
                    raise ChatError(_error_message(response))
                for line in response.iter_lines():
                    data = line.removeprefix("data: ")
                    if data == line or data == "[DONE]":
                        continue
                    chunk = json.loads(data)
                    if "error" in chunk:
                        raise ChatError(chunk["error"]["message"])
                    for choice in chunk["choices"]:
                        yield choice["delta"].get("content") or ""
        except httpx2.TransportError as error:
            raise ChatError(f"the connection to {self.url} broke: {error}") from error

    def _served_model(self) -> str:
        try:
            response = self.client.get(f"{self.url}/v1/models")
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            raise ChatError(
                f"no server answers at {self.url} ({error}); start one with: longspan serve"
            ) from error
        if response.status_code != 200:
            raise ChatError(_error_message(response))
        try:
            return str(response.json()["data"][0]["id"])
        except (ValueError, LookupError, TypeError) as error:
            raise ChatError(f"what answers at {self.url} is not an OpenAI-compatible server") from error


def chat(url: str, model: str | None, system: str | None, temperature: float) -> int:
    """Until /exit or the end of the input; the exit code: 1 if an answer failed."""
    conversation = Conversation(url, model, system, temperature)
    interactive = sys.stdin.isatty()
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


def _error_message(response: httpx2.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return f"the server answered with status {response.status_code}"
