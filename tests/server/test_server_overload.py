"""Refusals of requests that would be late, as clients see them: from the real policy, through the real engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from longspan.config import EngineConfig, Overload
from longspan.engine.assembly import start_engine
from longspan.engine.async_llm import AsyncLLM
from longspan.entrypoints.openai.app import create_app
from longspan.errors import OverloadedError
from longspan.worker.messages import Reply
from tests.models.tiny import write_tiny_model
from tests.server.live_server import LiveServer

HARDLY_ANY_TIME = "longspan:promise_factor=1:promise_floor_s=1e-6"
"""Whoever has to wait for others is late."""

ENOUGH = 25
"""Requests, after which the policy trusts its own estimates."""

COMPLETION: dict[str, Any] = {"prompt": [5] * 200, "max_tokens": 2, "ignore_eos": True}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "x " * 60}], "max_tokens": 2, "ignore_eos": True}
ENDPOINTS = {"/v1/completions": COMPLETION, "/v1/chat/completions": CHAT}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = write_tiny_model(tmp_path_factory.mktemp("overload"), max_position_embeddings=512)
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    (made / "chat_template.jinja").write_text(template)
    return made


class Busy:
    """A server whose engine knows what its estimates are worth, and has a crowd to serve, which waits until `go`."""

    def __init__(self, http: httpx2.AsyncClient, engine: AsyncLLM) -> None:
        self.http = http
        self.engine = engine
        self._heard: list[Reply] = []

    async def fill(self) -> None:
        patient = COMPLETION | {"if_late": "serve"}
        for _ in range(ENOUGH):
            assert (await self.http.post("/v1/completions", json=patient)).status_code == 200
        await self.engine.idle()
        self.engine.core.on_reply = self._heard.append  # type: ignore[method-assign]  # the replies are held back
        self.crowd = [await self.begin("/v1/completions", patient | {"prompt": [6] * 400}) for _ in range(20)]

    async def begin(self, path: str, body: dict[str, Any]) -> asyncio.Task[httpx2.Response]:
        """Ask, and wait until the engine serves it."""
        asked = len(self.engine.core.requests)
        answer = asyncio.create_task(self.http.post(path, json=body))
        while len(self.engine.core.requests) == asked and not answer.done():
            await asyncio.sleep(0)
        return answer

    async def go(self) -> None:
        """Let the engine hear its workers again, and wait for the crowd."""
        core = self.engine.core
        del core.on_reply
        for reply in self._heard:
            core.on_reply(reply)
        assert {(await each).status_code for each in self.crowd} == {200}

    async def refusals(self) -> dict[str, float]:
        lines = (await self.http.get("/metrics")).text.splitlines()
        found = [line for line in lines if line.startswith("longspan:requests_refused_total{")]
        return {line.partition('code="')[2].partition('"')[0]: float(line.rpartition(" ")[2]) for line in found}


@asynccontextmanager
async def busy(folder: Path, overload: Overload) -> AsyncIterator[Busy]:
    config = EngineConfig(
        model=str(folder), policy=HARDLY_ANY_TIME, overload=overload, instances=1, kv_tokens=20_000, max_waiting=64,
        executor="inproc", dtype="float32", threads_per_device=1,
    )  # fmt: skip
    engine = await start_engine(config)
    try:
        transport = httpx2.ASGITransport(create_app(engine))
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=120) as http:
            server = Busy(http, engine)
            await server.fill()
            yield server
    finally:
        await engine.close()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ENDPOINTS)
async def test_who_would_be_late_is_refused_before_anything_is_sent(folder: Path, path: str, stream: bool) -> None:
    async with busy(folder, "enforce") as server:
        body = ENDPOINTS[path] | {"stream": stream}
        asked = [body, body | {"if_late": "refuse"}, body | {"if_late": None}, body | {"n": 3}]
        for each in asked:
            answer = await server.http.post(path, json=each)
            assert answer.status_code == 429, answer.text
            error = answer.json()["error"]
            assert (error["type"], error["param"], error["code"]) == ("rate_limit_error", None, "overloaded")
            assert "overloaded" in error["message"] and answer.headers["content-type"] == "application/json"
            retry_after = answer.headers["retry-after"]
            assert retry_after.isdecimal() and int(retry_after) >= 1
            assert error["message"].endswith(f"try again in {retry_after} s.")
        assert await server.refusals() == {"overloaded": len(asked)}
        await server.go()


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_who_asks_to_be_served_is(folder: Path, path: str) -> None:
    async with busy(folder, "enforce") as server:
        answer = await server.begin(path, ENDPOINTS[path] | {"if_late": "serve"})
        await server.go()
        assert (await answer).status_code == 200
        assert await server.refusals() == {}


@pytest.mark.parametrize("overload", ["warn", "off"])
async def test_a_server_that_does_not_enforce_serves(folder: Path, overload: Overload) -> None:
    async with busy(folder, overload) as server:
        before = server.engine.core.num_served_late
        answer = await server.begin("/v1/completions", COMPLETION)
        assert server.engine.core.num_served_late - before == (1 if overload == "warn" else 0)
        await server.go()
        assert (await answer).status_code == 200


@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (1.01, "2"), (59.5, "60")])
@pytest.mark.parametrize("stream", [False, True])
def test_the_time_to_come_again_is_in_whole_seconds(
    server: LiveServer, http: httpx2.Client, seconds: float, header: str, stream: bool
) -> None:
    server.engine.refuse = OverloadedError("late", retry_after_s=seconds)
    refused = http.post("/v1/completions", json={"prompt": "x", "stream": stream})
    assert (refused.status_code, refused.headers["retry-after"]) == (429, header)


def test_openais_client_knows_it_for_a_rate_limit(server: LiveServer, client: openai.OpenAI) -> None:
    server.engine.refuse = OverloadedError("late", retry_after_s=3)
    with pytest.raises(openai.RateLimitError) as refused:
        client.completions.create(model=server.engine.model_name, prompt="x", extra_body={"if_late": "refuse"})
    assert refused.value.code == "overloaded"


def test_what_a_call_has_begun_is_ended(server: LiveServer, http: httpx2.Client) -> None:
    """Only those that a call begins with may be refused as late: the answers to the others are not thrown away."""
    at_once = server.engine.config.max_waiting // 16
    answer = http.post("/v1/completions", json={"prompt": ["x"] * (at_once + 3)})
    assert answer.status_code == 200
    asked = [params.service.if_late for params in server.engine.params.values()]
    assert asked == [None] * at_once + ["serve"] * 3


def test_the_schema_says_what_there_is(http: httpx2.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    for path in ENDPOINTS:
        body = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        allowed = json.dumps(body["properties"]["if_late"])
        assert '"refuse", "serve"' in allowed and '"null"' in allowed
