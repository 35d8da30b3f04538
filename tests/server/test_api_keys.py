"""Who may ask, how much of it at once, and that keys are told nowhere."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from longspan.entrypoints.openai.api_keys import ApiKey, ApiKeyMiddleware, ApiKeys, KeyUse, read_keys
from longspan.entrypoints.openai.errors import Refusal
from longspan.entrypoints.server_config import ServerConfig
from longspan.errors import ConfigError
from longspan.metrics.prometheus import ServerMetrics
from tests.server.fake_engine import MODEL, FakeEngine
from tests.server.live_server import LiveServer, live_server
from tests.server.raw_http import exchange, post
from tests.server.test_server_errors import error_of

KEY, OTHER = "sk-first-secret", "sk-second-secret"
CHAT = {"messages": [{"role": "user", "content": "x"}]}


@pytest.fixture(scope="module")
def keyed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"# the second\n\n{OTHER}\n")
    with live_server(api_key=(KEY,), api_key_file=file, key_max_requests=3, key_max_tokens=100) as server:
        yield server


@pytest.fixture
def keyed(keyed_server: LiveServer) -> LiveServer:
    keyed_server.engine.reset()
    return keyed_server


@pytest.fixture
def http(keyed: LiveServer) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=keyed.url, timeout=30, trust_env=False) as http:
        yield http


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize("key", [KEY, OTHER])
def test_a_key_opens(keyed: LiveServer, http: httpx2.Client, key: str) -> None:
    for path, body in (("/v1/completions", {"prompt": "x", "max_tokens": 2}), ("/v1/chat/completions", CHAT)):
        assert http.post(path, json=body | {"max_tokens": 2}, headers=bearer(key)).status_code == 200
    assert http.get("/v1/models", headers=bearer(key)).status_code == 200
    with openai.OpenAI(base_url=f"{keyed.url}/v1", api_key=key, max_retries=0) as client:
        client.completions.create(model=MODEL, prompt="x", max_tokens=2)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer("sk-wrong"),
        bearer(""),
        bearer(KEY + "x"),
        bearer(KEY[:-1]),
        bearer(KEY.upper()),
        bearer("é" * 60_000),
        {"authorization": KEY},
        {"authorization": f"Basic {KEY}"},
        {"api-key": KEY},
        {"x-api-key": KEY + "x"},
        {"x-api-key": f"Bearer {KEY}"},
        {"x-api-key": KEY, "authorization": "Bearer wrong"},
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/models", "/openapi.json", "/nope"])
def test_all_else_does_not(keyed: LiveServer, headers: dict[str, str], path: str) -> None:
    lines = [f"{name}: {value}"[:60_000] for name, value in headers.items()]
    (answer,) = exchange(keyed, post(b'{"prompt": "x"}', *lines, "Connection: close", path=path))
    assert answer.status == 401
    assert (answer.error["code"], answer.error["param"]) == ("invalid_api_key", None)
    assert answer.headers["www-authenticate"] == "Bearer"
    assert not keyed.engine.prompts


def test_two_headers_do_not_open(keyed: LiveServer) -> None:
    lines = (f"Authorization: Bearer {KEY}", f"Authorization: Bearer {OTHER}", "Connection: close")
    (answer,) = exchange(keyed, post(b'{"prompt": "x"}', *lines))
    assert answer.status == 401


def test_a_wrong_key_is_an_authentication_error_to_clients(keyed: LiveServer) -> None:
    with (
        openai.OpenAI(base_url=f"{keyed.url}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.completions.create(model=MODEL, prompt="x")


def test_probes_and_scrapers_need_none(http: httpx2.Client) -> None:
    for path in ("/health", "/ready", "/version", "/metrics"):
        assert http.get(path).status_code == 200
    assert http.options("/v1/completions").status_code == 204
    before = refusals(http)
    assert http.get("/v1/models").status_code == 401
    assert refusals(http)["invalid_api_key"] == before.get("invalid_api_key", 0) + 1


def refusals(http: httpx2.Client) -> dict[str, float]:
    lines = [line for line in http.get("/metrics").text.splitlines() if "requests_refused_total{" in line]
    return {line.partition('code="')[2].partition('"')[0]: float(line.split()[-1]) for line in lines}


def hold(server: LiveServer, http: httpx2.Client, key: str, max_tokens: int) -> Any:
    """A stream that waits for its first token."""
    body = {"prompt": "x", "max_tokens": max_tokens, "stream": True}
    request = http.build_request("POST", "/v1/completions", json=body, headers=bearer(key))
    answer = http.send(request, stream=True)
    server.engine.admitted.get(timeout=30)
    return answer


def test_requests_in_flight_are_limited_for_each_key(keyed: LiveServer, http: httpx2.Client) -> None:
    keyed.engine.hold()
    held = [hold(keyed, http, KEY, 2) for _ in range(3)]
    body = {"prompt": "x", "max_tokens": 2}
    refused = http.post("/v1/completions", json=body, headers=bearer(KEY))
    error = error_of(refused, 429)
    assert (error["code"], error["param"]) == ("rate_limit_exceeded", None)
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert "3 requests" in error["message"]
    assert http.get("/v1/models", headers=bearer(KEY)).status_code == 200
    held.append(hold(keyed, http, OTHER, 2))
    held[0].close()  # its client leaves
    keyed.engine.ended.get(timeout=30)
    keyed.engine.release()
    for stream in held[1:]:
        stream.read()
    for _ in range(5):  # what has ended, failed or been refused counts no more
        assert http.post("/v1/completions", json=body, headers=bearer(KEY)).status_code == 200
        assert http.post("/v1/completions", json={}, headers=bearer(KEY)).status_code == 400


def test_tokens_in_flight_are_limited_for_each_key(keyed: LiveServer, http: httpx2.Client) -> None:
    keyed.engine.hold()
    held = [hold(keyed, http, KEY, 59)]  # and one in the prompt
    refused = http.post("/v1/completions", json={"prompt": "x" * 20, "max_tokens": 21}, headers=bearer(KEY))
    error = error_of(refused, 429)
    assert (error["code"], error["param"]) == ("rate_limit_exceeded", None)
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert "41 tokens" in error["message"] and "60" in error["message"]
    many = {"prompt": ["x", "y"], "n": 2, "max_tokens": 10}
    assert error_of(http.post("/v1/completions", json=many, headers=bearer(KEY)), 429)
    held.append(hold(keyed, http, KEY, 39))
    held.append(hold(keyed, http, OTHER, 99))
    keyed.engine.release()
    for stream in held:
        stream.read()
    assert http.post("/v1/completions", json=many, headers=bearer(KEY)).status_code == 200


def test_who_has_too_much_is_told_when_enough_of_it_will_have_ended() -> None:
    """At the pace of the key's own requests."""
    now = 0.0
    use = KeyUse(max_requests=2, max_tokens=100, clock=lambda: now)

    def retry_after(tokens: int | None = None) -> str:
        with pytest.raises(Refusal) as refused, use.request() as ticket:
            ticket.charge(tokens or 0)
        return refused.value.answer.headers["retry-after"]

    with use.request() as long:
        long.charge(60)
        for _ in range(3):
            with use.request() as short:
                short.charge(30)
                now += 4.0
        with use.request() as short:
            short.charge(30)
            assert retry_after() == "4"  # three ended in twelve seconds,
        assert retry_after(90) == "5"  # and 120 tokens with the last, at once: 50 more must end
    now += 1000.0
    with use.request(), use.request():
        now += 9.0
        assert retry_after() == "9"  # none has ended yet; what was before tells nothing


async def test_what_is_refused_is_none_of_the_pace() -> None:
    """Whoever tries again and again is not told to come sooner for it."""
    now = 0.0
    keys = ApiKeys([ApiKey(KEY, "key-1")], max_requests=2, max_tokens=None, clock=lambda: now)
    asked: list[asyncio.Future[int]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked.append(status := asyncio.get_running_loop().create_future())
        await Response(status_code=await status)(scope, receive, send)

    metrics = ServerMetrics(model_name="m", max_model_len=10, stats=FakeEngine().stats)
    guarded = ApiKeyMiddleware(app, keys=keys, metrics=metrics, tells_tenant=False)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(guarded), base_url="http://x") as http:

        async def post(status: int | None) -> asyncio.Task[httpx2.Response]:
            answer, before = asyncio.create_task(http.post("/v1/completions", headers=bearer(KEY))), len(asked)
            while len(asked) == before and not answer.done():
                await asyncio.sleep(0)
            if status is not None:
                asked[-1].set_result(status)
                await answer
            return answer

        held = await post(None)
        now = 20.0
        for status in (400, 429, 503, 400):
            await post(status)
        other = await post(None)
        assert (await (await post(None))).headers["retry-after"] == "20"
        now = 24.0
        asked[-1].set_result(200)
        await other
        await post(None)
        assert (await (await post(None))).headers["retry-after"] == "24"
        for status in asked:
            if not status.done():
                status.set_result(200)
        await held


def test_more_tokens_than_a_key_may_ever_have_is_no_reason_to_come_back(
    keyed: LiveServer, http: httpx2.Client
) -> None:
    for body in ({"prompt": "x", "max_tokens": 100}, {"prompt": "x", "n": 2, "max_tokens": 50}):
        error = error_of(http.post("/v1/completions", json=body, headers=bearer(KEY)), 400)
        assert error["param"] == "max_tokens" and "100" in error["message"]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_keys_are_told_nowhere(log_format: str, caplog: pytest.LogCaptureFixture) -> None:
    config = ServerConfig(api_key=(KEY,), ssl_certfile=Path("x"), ssl_keyfile_password="secret word")
    assert KEY not in repr(config) and "secret word" not in repr(config)
    with (
        caplog.at_level(logging.DEBUG),
        live_server(api_key=(KEY,), access_log=True, log_level="debug") as server,
        httpx2.Client(base_url=server.url, timeout=30, trust_env=False) as http,
    ):
        answers = [
            http.post("/v1/completions", json={"prompt": "x"}, headers=bearer(key)) for key in (KEY, KEY + "y")
        ]
        answers.append(http.post("/v1/completions", json={"prompt": "x", KEY: 1}))
    assert [answer.status_code for answer in answers] == [200, 401, 401]
    told = caplog.text + "".join(answer.text for answer in answers)
    assert KEY not in told


@pytest.mark.parametrize("key", ["", "two words", "schlüssel", "line\nbreak", "x" * 1025])
def test_keys_that_no_client_can_send(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match="number 2") as refused:
        read_keys(ServerConfig(api_key=(KEY, key)))
    assert KEY not in str(refused.value) and (not key or key not in str(refused.value))


def test_files_of_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_keys(ServerConfig(api_key_file=file))
    file.write_text("# none yet\n")
    with pytest.raises(ConfigError, match="holds no key"):
        read_keys(ServerConfig(api_key_file=file))
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not text"):
        read_keys(ServerConfig(api_key_file=file))
    file.write_text(f"{KEY}\nnot a key\n")
    with pytest.raises(ConfigError, match="number 2") as refused:
        read_keys(ServerConfig(api_key_file=file))
    assert KEY not in str(refused.value)


@pytest.mark.parametrize("name", ["key_max_requests", "key_max_tokens"])
def test_limits_need_keys(name: str) -> None:
    with pytest.raises(ConfigError, match="api_key"):
        ServerConfig(**{name: 3})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at least 1"):
        ServerConfig(api_key=(KEY,), **{name: 0})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["", " "])
def test_a_variable_that_was_meant_to_hold_a_key(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty one, as a deployment makes of a secret that is missing, must not open the server."""
    monkeypatch.setenv("LONGSPAN_SERVE_API_KEY", value)
    with pytest.raises(ConfigError, match="LONGSPAN_SERVE_API_KEY is set, but holds no key"):
        read_keys(ServerConfig())
    assert read_keys(ServerConfig(api_key=(KEY,))) == [(KEY, "key-1")]
