"""What a server tells of its instances, and what it is asked to do with them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx2
import pytest

from longspan.entrypoints import cli
from longspan.executor.base import InstanceReport
from tests.server.live_server import LiveServer, live_server


def test_each_instance_is_shown(server: LiveServer, http: httpx2.Client) -> None:
    server.engine.missing[1] = "worker 1 is gone"
    assert http.get("/fleet").json()["instances"] == [
        {"instance": 0, "state": "serving", "why": "", "restarts": 0, "pids": [100], "kv_tokens_used": 156,
         "kv_tokens_cached": 30, "node": 0},
        {"instance": 1, "state": "starting", "why": "worker 1 is gone", "restarts": 0, "pids": [101],
         "kv_tokens_used": 100, "kv_tokens_cached": 0, "node": 0},
    ]  # fmt: skip


def test_an_instance_leaves(server: LiveServer, http: httpx2.Client) -> None:
    answer = http.post("/fleet/1/drain")
    assert answer.status_code == 200
    assert [one["state"] for one in answer.json()["instances"]] == ["serving", "drained"]
    assert server.engine.left == [(1, "drain")]


@pytest.mark.parametrize(
    ("path", "status"), [("/fleet/2/drain", 400), ("/fleet/1/explode", 404), ("/fleet/-1/drain", 404),
                         (f"/fleet/{'1' * 5000}/drain", 404), ("/fleet/\u0661/drain", 404), ("/fleet/1", 404)],
)  # fmt: skip
def test_nonsense_is_refused(server: LiveServer, http: httpx2.Client, path: str, status: int) -> None:
    refused = http.post(path)
    assert refused.status_code == status and refused.json()["error"]["message"]
    assert server.engine.left == []


def test_the_commands(server: LiveServer, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*arguments: str) -> list[str]:
        assert cli.run(["fleet", *arguments, "--url", server.url]) == 0
        return capsys.readouterr().out.splitlines()

    assert [line.split(",")[0] for line in told("list")] == ["instance 0: serving", "instance 1: serving"]
    assert "156 KV slots used, 30 cached, 0 restarts, processes 100" in told("list")[0]
    assert "100 KV slots used, 0 cached, " in told("list")[1]
    assert [line.split(",")[0] for line in told("drain", "1")] == ["instance 1: drained"]
    assert [line.split(",")[0] for line in told("remove", "1")] == ["instance 1: removed"]
    assert [line.split(",")[0] for line in told("restart", "0")] == ["instance 0: serving"]
    server.engine.left.clear()
    assert len(told("restart")) == 2 and server.engine.left == [(0, "restart"), (1, "restart")]


def test_a_page_in_a_browser_may_not_change_it(server: LiveServer, http: httpx2.Client) -> None:
    for path in ("/fleet", "/fleet/1/remove"):
        assert http.post(path, headers={"origin": "http://elsewhere.example"}).status_code == 403
    assert server.engine.left == [] and server.engine.added == 0


def test_one_is_added(server: LiveServer, http: httpx2.Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert [one["instance"] for one in http.post("/fleet").json()["instances"]] == [0, 1, 2]
    assert cli.run(["fleet", "add", "--url", server.url]) == 0
    assert capsys.readouterr().out.startswith("instance 3: serving")


def test_what_cannot_be_is_told(server: LiveServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["fleet", "drain", "7", "--url", server.url]) == 1
    assert "there is no instance 7" in capsys.readouterr().err
    assert cli.run(["fleet", "list", "--url", "http://127.0.0.1:1"]) == 1
    assert "no server answers at http://127.0.0.1:1" in capsys.readouterr().err
    assert cli.run(["fleet", "list", "--url", f"{server.url}/elsewhere"]) == 1
    assert "unknown path" in capsys.readouterr().err
    for url in ("elsewhere", "http://[::1", "http://127.0.0.1:99999999", "http://"):
        assert cli.run(["fleet", "list", "--url", url]) == 2
        assert f"url is {url!r}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", [b"<html>", b"[]", b"{}", b'{"error": "none of ours"}', b'{"stories": [{}]}', b'{"stories": 5}']
)
def test_who_else_answers_is_told(content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Other) as other, ThreadPoolExecutor(1) as pool:
        pool.submit(other.serve_forever)
        try:
            for command, lacking in ((["fleet", "list"], "has no fleet"), (["explain", "x"], "tells no stories")):
                assert cli.run([*command, "--url", f"http://127.0.0.1:{other.server_port}"]) == 1
                assert f"(status 200) {lacking}" in capsys.readouterr().err
        finally:
            other.shutdown()


@pytest.mark.parametrize("command", [("add",), ("restart", "1"), ("drain", "1"), ("remove", "1")])
def test_nobody_waits_for_one_that_does_not_come(
    server: LiveServer, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    instance = 2 if command == ("add",) else 1
    server.engine.courses[instance] = [
        InstanceReport(instance, "missing", "it has yet to be started"),
        InstanceReport(instance, "starting", "it has yet to be started"),
        InstanceReport(instance, "missing", "its memory is full", 1),
    ]
    assert cli.run(["fleet", *command, "--url", server.url]) == 1
    assert f"instance {instance} is missing: its memory is full" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["drain", "remove"])
def test_nobody_waits_for_what_is_not_wanted_any_more(
    server: LiveServer, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    server.engine.courses[1] = [InstanceReport(1, "leaving"), InstanceReport(1, "serving", "it was restarted", 1)]
    assert cli.run(["fleet", action, "1", "--url", server.url]) == 1
    assert "instance 1 serves again" in capsys.readouterr().err


def test_strangers_are_shown_nothing(tmp_path: Path) -> None:
    """A key is needed where there are keys."""
    with live_server(api_key=("secret",)) as server:
        for method, path in (("GET", "/fleet"), ("POST", "/fleet"), ("POST", "/fleet/1/remove")):
            for headers, status in (({}, 401), ({"authorization": "Bearer secret"}, 200)):
                answer = httpx2.request(method, server.url + path, headers=headers, timeout=30, trust_env=False)
                assert answer.status_code == status
