from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import pytest

from longspan.entrypoints import cli, terminal_chat
from longspan.errors import EngineDeadError
from tests.ports import closed_port
from tests.server.live_server import LiveServer
from tests.server.raw_server import Asked, raw_server, response


def pipe(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def prompts(server: LiveServer) -> list[str]:
    return [bytes(prompt).decode() for prompt in server.engine.prompts.values()]


def test_each_line_of_a_pipe_is_a_message(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.engine.answer = "Yes"
    pipe(monkeypatch, "one\n\ntwo\n/reset\nthree\n/exit\nfour\n")
    assert cli.run(["chat", "--url", server.url, "--system", "Be kind."]) == 0
    assert capsys.readouterr().out == "Yes\nYes\nYes\n"
    assert prompts(server) == [
        "<system>Be kind.<user>one",
        "<system>Be kind.<user>one<assistant>Yes<user>two",
        "<system>Be kind.<user>three",
    ]


def test_the_url_may_end_in_v1(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(monkeypatch, "one")
    assert cli.run(["chat", "--url", f"{server.url}/v1/"]) == 0
    assert prompts(server) == ["<user>one"]


def test_no_server(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pipe(monkeypatch, "one\n")
    with closed_port() as port:
        assert cli.run(["chat", "--url", f"http://127.0.0.1:{port}"]) == 1
    error = capsys.readouterr().err
    assert "no server answers at" in error and "longspan serve" in error and error.count("\n") == 1
    assert cli.run(["chat", "--url", "nonsense"]) == 2
    assert cli.run(["chat", "--url", "http://[::1"]) == 2
    assert cli.run(["chat", "--url", "http://127.0.0.1:99999999"]) == 2


def test_a_refused_message_does_not_end_the_chat(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe(monkeypatch, f"{'x' * 600}\none\n")
    assert cli.run(["chat", "--url", server.url]) == 1
    shown = capsys.readouterr()
    assert "at most 512 tokens" in shown.err
    assert shown.out == "Hello world\n"
    assert prompts(server) == ["<user>one"]
    pipe(monkeypatch, "one\n")
    assert cli.run(["chat", "--url", server.url, "--model", "nope"]) == 1
    assert "'nope' does not exist" in capsys.readouterr().err


def test_an_answer_that_breaks_off(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.engine.fail_after = (3, EngineDeadError("worker 1 is gone"), None)
    pipe(monkeypatch, "one\n")
    assert cli.run(["chat", "--url", server.url]) == 1
    assert "worker 1 is gone" in capsys.readouterr().err


def test_ctrl_c_stops_the_answer_only(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal: the answer ends, the server is told, what was said stays in the conversation."""
    typed: Iterator[str] = iter(["one", "two"])
    pieces_shown = 0

    def type_line(prompt: str) -> str:
        line = next(typed, None)
        if line is None:
            raise EOFError
        if line == "two":
            assert server.engine.ended.get(timeout=30)[1] == "aborted"
            server.engine.hold_after = None
            server.engine.release()
        return line

    def print_and_interrupt(*values: object, **options: object) -> None:
        nonlocal pieces_shown
        print(*values, **options)  # type: ignore[call-overload]
        if options.get("end") == "" and values != ("",):
            pieces_shown += 1
            if pieces_shown == 2:
                raise KeyboardInterrupt

    server.engine.hold_after = 2
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", type_line)
    monkeypatch.setattr(terminal_chat, "print", print_and_interrupt, raising=False)
    assert cli.run(["chat", "--url", server.url]) == 0
    assert "He [stopped]" in capsys.readouterr().out
    assert prompts(server)[1] == "<user>one<assistant>He<user>two"


MODELS = response(b'{"data": [{"id": "m"}]}')
ROLE = b'data: {"choices": [{"index": 0, "delta": {"role": "assistant", "content": null}}]}\n\n'
HELLO = b'data: {"choices": [{"index": 0, "delta": {"content": "Hello"}, "finish_reason": null}]}\n\n'
STOP = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'
USAGE = b'data: {"choices": [], "usage": {"completion_tokens": 1}}\n\n'
DONE = b"data: [DONE]\n\n"


def stream(body: bytes) -> bytes:
    return response(body, "200 OK", "text/event-stream")




@pytest.mark.parametrize(
    ("answer", "shown", "error"),
    [
        (stream(ROLE + HELLO + STOP + USAGE + DONE), "Hello\n", None),
        (stream(b": ping\r\n\r\n" + HELLO.replace(b"data: ", b"data:") + STOP), "Hello\n", None),  # no [DONE]
        (stream(HELLO), "Hello", "ended the answer in the middle"),
        (stream(HELLO + b'data: {"error": {"message": "worker 1 is gone"}}\n\n'), "Hello", "worker 1 is gone"),
        (stream(HELLO + b'data: {"error": "busy"}\n\n'), "Hello", "busy"),
        (stream(b"data: [1, 2]\n\n"), "", "no piece of a chat: [1, 2]"),
        (stream(b"data: " + b"[" * 100_000 + b"\n\n"), "", "no piece of a chat"),
        (stream((ROLE + HELLO + STOP + DONE).replace(b"\n", b"\r\n")), "Hello\n", None),
        (stream((ROLE + HELLO + STOP + DONE).replace(b"\n", b"\r")), "Hello\n", None),
        (stream(HELLO.replace(b', "finish', b',\ndata: "finish') + STOP), "Hello\n", None),  # one event in two lines
        (response(HELLO), "", "is not an OpenAI-compatible server: Expected response with content type"),
        (response(b"<html>no</html>", "502 Bad Gateway", "text/html"), "", "status 502"),
        (response(b'{"error": {"message": "no key"}}', "401 Unauthorized"), "", "no key (give a key with --api-key"),
        (response(b"", "200 OK", "text/event-stream", "content-length: 100"), "", "the connection to"),
        (b"SSH-2.0-OpenSSH\r\n", "", "the connection to"),
        (b"", "", "the connection to"),
    ],
)  # fmt: skip
def test_what_other_servers_and_broken_ones_send(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: bytes, shown: str, error: str | None
) -> None:
    def say(asked: Asked) -> Sequence[bytes]:
        return [MODELS] if asked.line.startswith("GET") else [answer]

    pipe(monkeypatch, "one\n")
    with raw_server(say) as server:
        assert cli.run(["chat", "--url", server.url]) == (0 if error is None else 1)
    out, errors = capsys.readouterr()
    assert out == shown
    assert error is None or (error in errors and errors.startswith("longspan: ") and errors.count("\n") == 1)


def test_a_key_by_option_and_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def keys(*options: str) -> set[str | None]:
        pipe(monkeypatch, "one\n")
        with raw_server(lambda asked: [MODELS] if asked.line.startswith("GET") else [stream(STOP)]) as server:
            assert cli.run(["chat", "--url", server.url, *options]) == 0
        return {asked.headers.get("authorization") for asked in server.asked}

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert keys() == {None}
    monkeypatch.setenv("OPENAI_API_KEY", "third")
    assert keys() == {"Bearer third"}
    monkeypatch.setenv("LONGSPAN_CHAT_API_KEY", "second")
    assert keys() == {"Bearer second"}
    assert keys("--api-key", "first") == {"Bearer first"}
    capsys.readouterr()
    for odd in ("", "a b", "sécret", "a\r\nhost: x"):
        assert cli.run(["chat", "--url", "http://127.0.0.1:1", "--api-key", odd]) == 2
        error = capsys.readouterr().err
        assert "api_key" in error and (not odd or odd not in error)


def test_bytes_that_are_no_text(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal or pipe may send any; what cannot be read becomes U+FFFD, and the chat goes on."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9 \xff\n\xc3\xa9\n   \n\n"), "utf-8"))
    assert cli.run(["chat", "--url", server.url, "--system", "\udce9"]) == 0
    first, second = prompts(server)
    assert first == "<system>\ufffd<user>caf\ufffd \ufffd" and second.endswith("<user>é")


@pytest.mark.parametrize("temperature", ["nan", "-1", "inf"])
def test_a_temperature_is_checked_first(capsys: pytest.CaptureFixture[str], temperature: str) -> None:
    assert cli.run(["chat", "--url", "http://127.0.0.1:1", "--temperature", temperature]) == 2
    assert "temperature is" in capsys.readouterr().err
