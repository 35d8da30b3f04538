from __future__ import annotations

import io
import socket
from collections.abc import Iterator

import pytest

from longspan.entrypoints import cli, terminal_chat
from longspan.errors import EngineDeadError
from tests.server.live_server import LiveServer


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
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    pipe(monkeypatch, "one\n")
    assert cli.run(["chat", "--url", f"http://127.0.0.1:{port}"]) == 1
    error = capsys.readouterr().err
    assert "no server answers at" in error and "longspan serve" in error and error.count("\n") == 1
    assert cli.run(["chat", "--url", "nonsense"]) == 1


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
