"""Stories of requests, told by a server that runs them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from longspan.config import EngineConfig
from longspan.core.events import RequestArrived
from longspan.engine.assembly import start_engine
from longspan.engine.async_llm import AsyncLLM
from longspan.entrypoints import cli
from longspan.entrypoints.openai.app import create_app
from longspan.entrypoints.openai.stories import MOST_AT_ONCE
from longspan.metrics.event_log import EventLog
from longspan.metrics.explain import explain_all
from longspan.metrics.recent import Recent
from longspan.metrics.request_list import request_ids
from longspan.metrics.story import Story
from tests.models.tiny import write_tiny_model
from tests.server.fake_engine import FakeEngine
from tests.server.live_server import live_server

ARRIVED = RequestArrived("cmpl-a-1", 7, 9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("stories"), max_position_embeddings=512)


@pytest.fixture
async def engine(folder: Path, tmp_path: Path) -> AsyncIterator[AsyncLLM]:
    config = EngineConfig(
        model=str(folder), instances=2, kv_tokens=2000, executor="inproc", dtype="float32", threads_per_device=1,
        event_log=tmp_path / "events.jsonl", overload="off",
    )  # fmt: skip
    engine = await start_engine(config)
    yield engine
    await engine.close()


async def ask(engine: AsyncLLM, *requests: dict[str, Any]) -> list[httpx2.Response]:
    transport = httpx2.ASGITransport(create_app(engine))
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=120) as http:
        return list(await asyncio.gather(*[http.request(**request) for request in requests]))


def completion(name: str, **more: object) -> dict[str, Any]:
    body = {"prompt": [5] * 300, "max_tokens": 4, "ignore_eos": True, **more}
    return {"method": "POST", "url": "/v1/completions", "json": body, "headers": {"x-request-id": name}}


def story(name: str) -> dict[str, Any]:
    return {"method": "GET", "url": f"/requests/{name}/story"}


async def test_a_server_tells_what_its_event_log_tells(engine: AsyncLLM, tmp_path: Path) -> None:
    answers = await ask(engine, completion("mine", n=2), *[completion(f"other-{number}") for number in range(4)])
    await engine.idle()
    by_header, by_answer, unknown = await ask(engine, story("mine"), story(answers[0].json()["id"]), story("nobody"))
    assert by_header.status_code == 200 and by_header.json() == by_answer.json()
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "request_not_found")
    told = by_header.json()["stories"]
    assert len(told) == 2
    await engine.close()
    log = EventLog(tmp_path / "events.jsonl")
    for each, written in zip(told, explain_all(log, [each["request_id"] for each in told]), strict=True):
        assert each["lines"] == list(written.lines())
        assert any("ends: length" in line for line in each["lines"])


async def test_little_memory_tells_the_end(engine: AsyncLLM, tmp_path: Path) -> None:
    """What was dropped is missing; what goes on then is told all the same, with what was under way."""
    await ask(engine, *[completion(f"request-{number}", max_tokens=30) for number in range(6)])
    await engine.idle()
    await engine.close()
    log = EventLog(tmp_path / "events.jsonl")
    recent = Recent(most=60)
    for record in log:
        recent.add(record.now, record.event, record.actions, record.why)
        assert recent.size <= 60
    assert len(recent) > 5
    every = list(request_ids(log))
    whole = {each.request_id: each for each in explain_all(log, every)}
    seen = 0
    for request_id in every:
        known = tell(recent, request_id)
        if known is None:
            assert recent.find(request_id) == []
            continue
        seen += 1
        assert known.arrived.num_prompt_tokens == 300
        assert known.chapters[0].kind == "missing" and known.chapters[-1] == whole[request_id].chapters[-1]
    assert seen > 0


def tell(recent: Recent, request_id: str) -> Story | None:
    telling = recent.tell(request_id)
    while True:
        try:
            next(telling)
        except StopIteration as told:
            found: Story | None = told.value
            return found


async def test_others_have_their_turns_meanwhile(engine: AsyncLLM) -> None:
    for number in range(4):  # one after the other, or their steps are batches of four
        await ask(engine, completion(f"request-{number}", max_tokens=100))
    await engine.idle()
    telling = engine.core.records.recent.tell(engine.core.records.recent.find("request-3")[0])
    assert sum(1 for _ in telling) >= len(engine.core.records.recent) // 64 - 2 > 0


def test_strangers_are_told_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A key is needed where there are keys."""

    class Asked(FakeEngine):
        async def stories(self, given: str, most: int) -> list[Story]:
            raise AssertionError("nobody may know")

    with live_server(Asked(), api_key=("secret",)) as server:
        assert httpx2.get(f"{server.url}/requests/x/story", timeout=30, trust_env=False).status_code == 401
        assert cli.run(["explain", "--url", server.url, "x"]) == 1
        assert "needs an API key" in capsys.readouterr().err


async def test_without_keys_only_this_machine_is_told() -> None:
    app = create_app(FakeEngine())
    for client, status in ((("192.0.2.7", 1), 403), (("127.0.0.1", 1), 404), (("::1", 1), 404)):
        transport = httpx2.ASGITransport(app, client=client)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            assert (await http.get("/requests/x/story")).status_code == status
    app.state.context.close()


async def test_few_stories_are_told_at_once() -> None:
    go_on = asyncio.Event()

    class Slow(FakeEngine):
        async def stories(self, given: str, most: int) -> list[Story]:
            await go_on.wait()
            return []

    app = create_app(Slow())
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://127.0.0.1") as http:
        asked = [asyncio.ensure_future(http.get("/requests/x/story")) for _ in range(MOST_AT_ONCE + 1)]
        done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        (refused,) = done
        assert refused.result().status_code == 429 and refused.result().headers["retry-after"] == "1"
        go_on.set()
        assert {(await each).status_code for each in asked if each is not refused} == {404}
    app.state.context.close()


def test_the_command_asks_a_server(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Telling(FakeEngine):
        async def stories(self, given: str, most: int) -> list[Story]:
            return [] if given != "a/b c" else [Story("cmpl-a-1", ARRIVED, ())]

    with live_server(Telling()) as server:
        assert cli.run(["explain", "--url", f"{server.url}/v1", "a/b c"]) == 0
        assert capsys.readouterr().out == "cmpl-a-1: 7 prompt tokens, at most 9 to generate\n"
        assert cli.run(["explain", "--url", server.url, "other"]) == 1
        assert "'other' is remembered" in capsys.readouterr().err
        for url in ("ftp://x", "http://[::1"):
            assert cli.run(["explain", "--url", url, "other"]) == 2
            assert f"url is {url!r}" in capsys.readouterr().err
        assert cli.run(["explain", "--url", server.url, "other", "more"]) == 2
    assert cli.run(["explain", "--url", server.url, "other"]) == 1
    assert "no server answers at" in capsys.readouterr().err
    assert cli.run(["explain"]) == 2
