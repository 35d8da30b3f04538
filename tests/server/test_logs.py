"""The access log, and logs as JSON."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import httpx2
import pytest

from longspan.entrypoints import cli
from longspan.entrypoints.logs import ACCESS, JsonFormatter, TextFormatter
from longspan.log_fields import fields
from tests.server.live_server import LiveServer, live_server
from tests.server.raw_http import exchange, post
from tests.server.test_server_disconnect import send

SECRET = "nobody-may-read-this"


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[LiveServer]:
    with caplog.at_level(logging.INFO, ACCESS), live_server(cors_origins=("https://a.example",)) as server:
        yield server


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    """Each access line, as JSON."""
    form = JsonFormatter()
    return [json.loads(form.format(record)) for record in caplog.records if record.name == ACCESS]


def test_a_line_for_each_request(logged: LiveServer, caplog: pytest.LogCaptureFixture) -> None:
    with httpx2.Client(base_url=logged.url, timeout=30, trust_env=False) as http:
        body = {"prompt": SECRET, "user": SECRET, "stream": True}
        headers = {"authorization": f"Bearer {SECRET}", "x-request-id": "mine"}
        http.post(f"/v1/completions?secret={SECRET}", json=body, headers=headers)
        http.get("/v1/models")
        http.options("/health")
        http.get("/nope%1b[2J%0a%0d2026")
        logged.engine.fail_after = (0, ZeroDivisionError(), None)
        http.post("/v1/completions", json={"prompt": "x"}, headers={"connection": "close"})
    exchange(logged, b"\0\0\0")
    exchange(logged, b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
    found = [(line["method"], line["path"], line["status"]) for line in lines(caplog)]
    assert sorted(found) == [
        ("-", "-", 400),
        ("-", "-", 400),
        ("GET", "/nope%1b[2J%0a%0d2026", 404),
        ("GET", "/v1/models", 200),
        ("OPTIONS", "/health", 204),
        ("POST", "/v1/completions", 200),
        ("POST", "/v1/completions", 500),
    ]
    (first,) = [line for line in lines(caplog) if line["request_id"] == "mine"]
    assert str(first["client"]).startswith("127.0.0.1:")
    assert isinstance(first["seconds"], float)
    assert "mine" in caplog.text and SECRET not in caplog.text


def test_a_client_that_leaves_is_a_499(logged: LiveServer, caplog: pytest.LogCaptureFixture) -> None:
    logged.engine.hold()
    with send(logged, "/v1/completions", {"prompt": "x"}):
        logged.engine.admitted.get(timeout=30)
    logged.engine.ended.get(timeout=30)
    exchange(logged, post(b"{}", "Connection: close"))  # its line comes later
    assert [line["status"] for line in lines(caplog)] == [499, 400]


class Written(logging.Handler):
    """What a server writes, in both forms, at the moment at which it does."""

    def __init__(self) -> None:
        super().__init__()
        self.json: list[dict[str, str]] = []
        self.text: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.json.append(json.loads(JsonFormatter().format(record)))
        self.text.append(TextFormatter().format(record))


@pytest.fixture
def written() -> Iterator[Written]:
    handler = Written()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


@pytest.mark.parametrize("body", [{"prompt": SECRET}, {"prompt": SECRET, "stream": True}, {"prompt": [SECRET, "x"]}])
def test_every_line_about_a_request_has_its_id(
    written: Written, caplog: pytest.LogCaptureFixture, body: dict[str, object]
) -> None:
    """Tracebacks of bugs, too; what was asked is in none."""
    with caplog.at_level(logging.INFO, ACCESS), live_server() as server:
        server.engine.fail_after = (2, ZeroDivisionError("a bug"), None)
        with httpx2.Client(base_url=server.url, timeout=30, trust_env=False) as http:
            for name, asked in (("mine", body), ("other", {"prompt": SECRET})):
                http.post("/v1/completions", json=asked, headers={"x-request-id": name, "connection": "close"})
    broken = [line for line in written.json if "exception" in line]
    assert [line["request_id"] for line in broken] == ["mine", "other"]
    assert [line["request_id"] for line in written.json if line["logger"] == ACCESS] == ["mine", "other"]
    about = [text for line, text in zip(written.json, written.text, strict=True) if "request_id" in line]
    assert len(about) == 4 and all("mine" in text or "other" in text for text in about)
    assert not any(SECRET in text for text in written.text)


def test_text_tells_the_id_once() -> None:
    form, told = TextFormatter(), fields(request_id="mine")["fields"]
    for message, shown in (("it failed", "it failed (request mine)"), ("mine failed", "mine failed")):
        record = logging.LogRecord("a", logging.INFO, "f.py", 1, message, None, None)
        record.fields = told
        assert form.format(record).endswith(shown)


def test_what_ends_the_command_is_json_too(written: Written, capsys: pytest.CaptureFixture[str]) -> None:
    written.setFormatter(JsonFormatter())
    assert cli.run(["serve", "/nowhere/model\nx"]) == cli.FAILED
    assert [line["level"] for line in written.json][-1] == "CRITICAL"
    assert "/nowhere/model" in written.json[-1]["message"]
    assert "longspan:" not in capsys.readouterr().err


def test_none_by_default(server: LiveServer, http: httpx2.Client, caplog: pytest.LogCaptureFixture) -> None:
    http.get("/health")
    assert lines(caplog) == []


def test_json_of_anything() -> None:
    form = JsonFormatter()
    try:
        raise ValueError("two\nlines")
    except ValueError:
        import sys

        record = logging.LogRecord("a.b", logging.ERROR, "f.py", 1, "lone %s\n", ("\ud800",), sys.exc_info())
    (line,) = form.format(record).splitlines()
    found = json.loads(line)
    assert (found["level"], found["logger"], found["message"]) == ("ERROR", "a.b", "lone \ud800\n")
    assert "ValueError: two\nlines" in found["exception"]
    assert found["time"].endswith("+00:00")
