"""`longspan bench serve` against servers that are not ours: what they send over HTTP, and how they fail."""

from __future__ import annotations

import gzip
import json
import socket
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from longspan.entrypoints import cli
from longspan.entrypoints.bench.exchange import Endpoint
from longspan.errors import ConfigError
from tests.server.raw_server import Asked, RawServer, raw_server, response
from tests.server.test_bench_stream import DONE, token, usage

MODELS = response(b'{"data": [{"id": "m"}]}')
STREAM = (token("") + token("a") + token("b", "length") + usage(7, 2) + DONE).encode()
SSE = "text/event-stream"


def chunked(body: bytes, size: int) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def by_bytes(answer: bytes) -> Sequence[bytes]:
    """In many writes: cut in the status line, headers, sizes and characters."""
    return [answer[at : at + 7] for at in range(0, len(answer), 7)]


def bench(url: str, out: Path, *options: str) -> tuple[int, list[dict[str, Any]]]:
    settings = ("--input-len", "5", "--output-len", "2", "--num-requests", "2", "--rate", "500")
    code = cli.run(["bench", "serve", "--url", url, *settings, "--json", str(out), *options])
    return code, json.loads(out.read_text())["requests"] if out.exists() else []


def serving(*answers: Sequence[bytes]) -> Any:
    """One for the client's own first request, then for each of the run's; the last one again and again."""
    left = list(answers)

    def answer(asked: Asked) -> Sequence[bytes]:
        if asked.line.startswith("GET"):
            return [MODELS]
        return left.pop(0) if len(left) > 1 else left[0]

    return raw_server(answer)


@pytest.mark.parametrize(
    "answer",
    [
        response(STREAM, "200 OK", SSE),  # ends with the connection
        response(STREAM, "200 OK", SSE, f"content-length: {len(STREAM)}"),
        response(chunked(STREAM, 11), "200 OK", SSE, "transfer-encoding: chunked"),
        response(gzip.compress(STREAM), "200 OK", SSE, "content-encoding: gzip"),
        response(chunked(zlib.compress(STREAM), 5), "200 OK", SSE, "content-encoding: deflate",
                 "transfer-encoding: chunked"),
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + response(STREAM, "200 OK", SSE),
        response(STREAM.replace(b"\n", b"\r\n"), "200 OK", SSE),
        b"HTTP/1.0 200 OK\r\n\r\n" + STREAM,
    ],
)  # fmt: skip
def test_every_way_to_send_a_stream(tmp_path: Path, answer: bytes) -> None:
    with serving(by_bytes(answer)) as server:
        code, requests = bench(server.url, tmp_path / "out.json")
    assert code == 0
    for request in requests:
        assert (request["outcome"], request["num_prompt_tokens"], request["num_output_tokens"]) == ("finished", 7, 2)
        assert len(request["token_times_s"]) == 2


GOOD = [response(STREAM, "200 OK", SSE)]
HALF = token("a").encode()


@pytest.mark.parametrize(
    ("answer", "outcome", "says"),
    [
        (response(b'{"error": {"message": "too many"}}', "429 Too Many Requests"), "refused", "too many"),
        (response(b"<html>\n<h1>502</h1>", "502 Bad Gateway", "text/html"), "refused", "<html> <h1>502</h1>"),
        (response(b"", "503 Service Unavailable"), "refused", "status 503"),
        (response(b"", "307 Temporary Redirect", "text/html", "location: http://x/y"), "failed", "give http://x/y as"),
        (response(b"", "301 Moved Permanently", "text/html", "content-length: 0", "location: /z"), "failed", "/z"),
        (response(HALF, "200 OK", SSE), "failed", "ended in the middle"),
        (response(HALF, "200 OK", SSE, "content-length: 999"), "failed", "the connection broke"),
        (response(HALF + b'data: {"error": {"message": "gone"}}\n\n' + DONE.encode(), "200 OK", SSE), "failed", "gone"),
        (response(b'{"choices": [{"text": "ab"}]}'), "failed", "the answer is no stream"),
        (response(b"", "200 OK", SSE), "failed", "ended in the middle"),
        (response(DONE.encode(), "200 OK", SSE), "failed", "the stream held no output"),
        (response(STREAM, "200 OK", SSE, "content-encoding: gzip"), "failed", "compressed data are broken"),
        (response(STREAM, "200 OK", SSE, "content-encoding: br"), "failed", "encoded as br"),
        (response(b"zz\r\n", "200 OK", SSE, "transfer-encoding: chunked"), "failed", "not HTTP/1.1"),
        (b"220 smtp.example ESMTP\r\n", "failed", "not HTTP/1.1"),
        (b"", "failed", "the connection broke"),
    ],
)  # fmt: skip
def test_every_way_to_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], answer: bytes, outcome: str, says: str
) -> None:
    """The run goes on, and tells the first of each kind; no latency is made of what broke off."""
    with serving(GOOD, [answer], GOOD) as server:
        code, requests = bench(server.url, tmp_path / "out.json")
    assert code == 0
    ended = {request["outcome"]: request["message"] for request in requests}
    assert ended.keys() == {"finished", outcome} and says in ended[outcome]
    shown = capsys.readouterr()
    assert "1 of 2 requests finished" in shown.out and says in shown.out and "Traceback" not in shown.err


def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, by the system's queue, and says nothing
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert bench(url, tmp_path / "out.json", "--model", "m", "--timeout", "0.2")[0] == 1
    assert not (tmp_path / "out.json").exists()


def keys_sent(server: RawServer) -> set[str | None]:
    return {asked.headers.get("authorization") for asked in server.asked}


def test_a_key_is_shown_to_the_server_and_to_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving(GOOD) as server:
        assert bench(server.url, tmp_path / "none.json")[0] == 0
        assert keys_sent(server) == {None}
        server.asked.clear()
        monkeypatch.setenv("OPENAI_API_KEY", "sk-environment")
        assert bench(server.url, tmp_path / "environment.json")[0] == 0
        assert keys_sent(server) == {"Bearer sk-environment"}
        server.asked.clear()
        assert bench(server.url, tmp_path / "option.json", "--api-key", "sk-option")[0] == 0
        assert keys_sent(server) == {"Bearer sk-option"}
    written = "".join(path.read_text() for path in tmp_path.iterdir())
    assert "sk-" not in written and "sk-" not in "".join(capsys.readouterr())
    with raw_server(lambda _: [response(b'{"error": {"message": "no"}}', "401 Unauthorized")]) as server:
        assert bench(server.url, tmp_path / "refused.json")[0] == 1
    assert "give a key with --api-key" in capsys.readouterr().err
    assert bench("http://127.0.0.1:1", tmp_path / "odd.json", "--api-key", "a\r\nhost: x")[0] == 2


@pytest.mark.parametrize(
    ("url", "sent", "host"),
    [
        ("http://h:1", "/v1/models", "h:1"),
        ("http://h:1/v1/", "/v1/models", "h:1"),
        ("https://h/a b/é/v1", "/a%20b/%C3%A9/v1/models", "h"),
        ("http://name:word@h:2/x", "/x/v1/models", "h:2"),
        ("http://[::1]:3", "/v1/models", "[::1]:3"),
        ("http://bücher.example", "/v1/models", "xn--bcher-kva.example"),
        ("http://h/a%20b", "/a%20b/v1/models", "h"),
    ],
)
def test_urls(url: str, sent: str, host: str) -> None:
    lines = Endpoint.parse(url).request("GET", "/v1/models").decode("ascii").split("\r\n")
    assert lines[0] == f"GET {sent} HTTP/1.1" and f"host: {host}" in lines


@pytest.mark.parametrize(
    "url", ["", "h:1", "ftp://h", "http://", "http://[::1", "http://h:x", "http://h:99999", f"http://{'h' * 80}.x"]
)
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ConfigError, match="url is"):
        Endpoint.parse(url)
