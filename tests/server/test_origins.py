"""Hosts, other pages' origins, and OPTIONS."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest

from longspan.entrypoints.openai.origins import host_check
from longspan.entrypoints.server_config import ServerConfig
from longspan.errors import ConfigError
from tests.server.live_server import LiveServer, live_server
from tests.server.raw_http import exchange
from tests.server.test_server_errors import error_of

LOCAL = ("127.0.0.1", "127.0.0.1:8000", "localhost", "LOCALHOST:8000", "localhost.", "app.localhost", "[::1]:8000",
         "192.168.0.7:1", "llm", "")  # fmt: skip
ELSEWHERE = ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "evil.example.",
             "a@127.0.0.1", "127.0.0.1/x", "[::1].evil.example", "127.0.0.1:evil", "0x7f.1", "1.2.3")  # fmt: skip


def answered(server: LiveServer, host: str, path: str = "/v1/models") -> int:
    (answer,) = exchange(server, f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    if answer.status != 200:
        assert answer.error["code"] == "host_not_allowed"
    return answer.status


def test_a_local_server_answers_for_local_names_only(server: LiveServer) -> None:
    """A page whose name is made to point here would else read all that its user's own machine may."""
    assert [answered(server, host) for host in LOCAL] == [200] * len(LOCAL)
    assert [answered(server, host) for host in ELSEWHERE] == [421] * len(ELSEWHERE)
    assert answered(server, "evil.example", "/health") == 200


def test_a_list_of_hosts() -> None:
    with live_server(allowed_hosts=("api.example.com", "*.Example.org")) as server:
        for host in ("api.example.com", "API.example.com:443", "a.example.org", "a.b.example.org"):
            assert answered(server, host) == 200
        for host in ("example.com", "example.org", "xexample.org", "localhost", "127.0.0.1"):
            assert answered(server, host) == 421
        assert answered(server, "10.1.2.3", "/ready") == 200


@pytest.mark.parametrize(
    "settings",
    [
        {"allowed_hosts": ("*",)},
        {"allowed_hosts": ("x", "*")},
        {"api_key": ("key",)},
        {"host": "0.0.0.0"},
        {"host": "::"},
        {"host": "server.example.com"},
    ],
)
def test_where_all_hosts_are_answered(settings: dict[str, object]) -> None:
    assert host_check(ServerConfig(**settings)) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_what_is_local(host: str) -> None:
    check = host_check(ServerConfig(host=host))
    assert check is not None and check(host) and not check("evil.example")


@pytest.mark.parametrize("host", ["", "a.*", "*.*.com", "http://x", "**"])
def test_hosts_that_are_none(host: str) -> None:
    with pytest.raises(ConfigError, match="allowed_hosts"):
        ServerConfig(allowed_hosts=(host,))


@pytest.mark.parametrize("origin", ["", "example.com", "https://example.com/", "https://example.com/x"])
def test_origins_that_are_none(origin: str) -> None:
    with pytest.raises(ConfigError, match="cors_origins"):
        ServerConfig(cors_origins=(origin,))


@pytest.fixture(scope="module")
def open_to_pages() -> Iterator[LiveServer]:
    with live_server(cors_origins=("https://app.example",), api_key=("key",)) as server:
        yield server


def preflight(server: LiveServer, origin: str, method: str = "POST") -> httpx2.Response:
    headers = {
        "origin": origin,
        "access-control-request-method": method,
        "access-control-request-headers": "authorization, content-type, x-stainless-lang",
    }
    return httpx2.request("OPTIONS", f"{server.url}/v1/completions", headers=headers, timeout=30, trust_env=False)


def test_pages_of_a_given_origin_may_call(open_to_pages: LiveServer) -> None:
    allowed = preflight(open_to_pages, "https://app.example")
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://app.example"
    assert "x-stainless-lang" in allowed.headers["access-control-allow-headers"]
    for key, status in (("key", 200), ("wrong", 401)):  # a page can read why, too
        answer = httpx2.post(
            f"{open_to_pages.url}/v1/completions",
            json={"prompt": "x"},
            headers={"origin": "https://app.example", "authorization": f"Bearer {key}"},
            timeout=30,
            trust_env=False,
        )
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert "x-request-id" in answer.headers["access-control-expose-headers"]


def test_pages_of_others_may_not(open_to_pages: LiveServer, server: LiveServer) -> None:
    for origin in ("https://evil.example", "https://app.example.evil.example", "null"):
        refused = preflight(open_to_pages, origin)
        assert error_of(refused, 403)["code"] == "origin_not_allowed"
        assert "access-control-allow-origin" not in refused.headers
    error_of(preflight(open_to_pages, "https://app.example", "PUT"), 403)
    by_default = preflight(server, "https://app.example")
    assert by_default.status_code == 204
    assert not [name for name in by_default.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/v1/completions", "OPTIONS, POST"),
        ("/v1/chat/completions", "OPTIONS, POST"),
        ("/v1/models/org/name", "GET, OPTIONS"),
        ("/health", "GET, HEAD, OPTIONS"),
        ("/openapi.json", "GET, HEAD, OPTIONS"),
    ],
)
def test_options_names_the_methods(http: httpx2.Client, path: str, allow: str) -> None:
    answer = http.options(path)
    assert (answer.status_code, answer.headers["allow"], answer.content) == (204, allow, b"")
    assert answer.headers["x-request-id"]
    refused = http.delete(path)
    assert error_of(refused, 405)["code"] == "method_not_allowed"
    assert refused.headers["allow"] == allow


def test_options_of_nothing(http: httpx2.Client) -> None:
    assert error_of(http.options("/nope"), 404)["code"] == "unknown_url"
