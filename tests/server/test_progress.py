"""What streams tell of how far their choices are, and answers of how long they take."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from starlette.types import Message

from longspan.config import EngineConfig
from longspan.core.estimate import Estimate
from longspan.core.progress import Progress
from longspan.engine.assembly import start_engine
from longspan.entrypoints.openai import sse
from longspan.entrypoints.openai.app import create_app
from longspan.entrypoints.openai.pace import INTERVAL_S, MOST_OF_THE_LOOP, Pace
from longspan.errors import EngineDeadError, EngineDrainingError, EngineStalledError, QueueFullError
from longspan.sampling_params import SamplingParams
from longspan.worker.messages import Reply
from tests.models.tiny import write_tiny_model
from tests.server.fake_engine import MODEL, FakeEngine
from tests.server.live_server import LiveServer, live_server

COMPLETION: dict[str, Any] = {"prompt": "abc", "stream": True, "progress": True}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "stream": True, "progress": True}
BODIES = {"/v1/completions": COMPLETION, "/v1/chat/completions": CHAT}

WAITING = Progress("waiting", 3, 100, 0, 20, 1.5, Estimate(12.0, 30.0, ahead=2))
TOLD = {
    "index": 0, "phase": "waiting", "queue_position": 3, "prompt_tokens": 100, "computed_tokens": 0,
    "cached_tokens": 20, "elapsed_s": 1.5, "ttft_p50_s": 12.0, "ttft_p95_s": 30.0,
}  # fmt: skip
PREFILL = Progress("prefill", None, 100, 60, 20, 2.5, None)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers ask often: no test waits for the clock."""
    monkeypatch.setattr("longspan.entrypoints.openai.pace.INTERVAL_S", 0.01)


def chunks(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


@contextmanager
def waiting(
    server: LiveServer, path: str, **more: object
) -> Iterator[tuple[httpx2.Response, Iterator[dict[str, Any]]]]:
    """A stream whose first token does not come."""
    engine = server.engine
    engine.hold()
    engine.told = WAITING
    with (
        httpx2.Client(base_url=server.url, timeout=30, trust_env=False) as http,
        http.stream("POST", path, json=BODIES[path] | more) as answer,
    ):
        yield answer, chunks(answer.iter_lines())


@pytest.mark.parametrize("path", BODIES)
def test_what_has_changed_is_told_once(server: LiveServer, path: str) -> None:
    with waiting(server, path) as (answer, told):
        assert answer.headers["longspan-estimated-ttft"] == "12.000"
        first = next(told)
        assert (first["choices"], first["longspan_progress"]) == ([], [TOLD])
        server.engine.told = PREFILL
        second = next(told)
        assert {name: first[name] for name in ("id", "object", "model", "created", "system_fingerprint")} == {
            name: second[name] for name in ("id", "object", "model", "created", "system_fingerprint")
        }
        (news,) = second["longspan_progress"]
        assert (news["phase"], news["queue_position"], news["computed_tokens"]) == ("prefill", None, 60)
        assert (news["ttft_p50_s"], news["ttft_p95_s"]) == (None, None)
        server.engine.told = Progress("prefill", None, 100, 60, 20, 99.0, None)  # nothing but the time is new
        server.engine.release()
        rest = list(told)
    assert len(rest) >= 11 and not any("longspan_progress" in chunk for chunk in rest)


def test_headers_wait_for_nothing_but_the_news(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "HEADERS_WITHIN_S", 3600.0)
    with waiting(server, "/v1/completions", n=2) as (answer, told):
        assert answer.headers["longspan-estimated-ttft"] == "12.000"
        assert len(_told_of(told, 2)) == 2


@pytest.mark.parametrize("path", BODIES)
def test_each_choice_is_told_of(server: LiveServer, path: str) -> None:
    with waiting(server, path, n=3) as (_, told):
        assert _told_of(told, 3) == [TOLD | {"index": index} for index in range(3)]


def _told_of(told: Iterator[dict[str, Any]], choices: int) -> list[dict[str, Any]]:
    """What comes first of so many choices."""
    found: list[dict[str, Any]] = []
    while len(found) < choices:
        found += next(told)["longspan_progress"]
    return found


def test_no_event_takes_long_to_make(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where estimates take long, an event tells of one choice, and the next of another."""
    monkeypatch.setattr("longspan.entrypoints.openai.progress.MOST_S", 0.0)
    with live_server() as server, waiting(server, "/v1/completions", n=3) as (_, told):
        for index in range(3):
            assert next(told)["longspan_progress"] == [TOLD | {"index": index}]


@pytest.mark.parametrize("path", BODIES)
def test_nobody_is_told_who_does_not_ask(server: LiveServer, path: str) -> None:
    with waiting(server, path, progress=None) as (answer, told):
        assert answer.headers["longspan-estimated-ttft"] == "12.000"
        server.engine.release()
        assert all(chunk["choices"] for chunk in told)


def test_usage_stays_null_where_it_is_asked_for(server: LiveServer) -> None:
    with waiting(server, "/v1/completions", stream_options={"include_usage": True}) as (_, told):
        first = next(told)
        assert first["usage"] is None and first["longspan_progress"] == [TOLD]


def test_openais_client_reads_on(server: LiveServer, client: openai.OpenAI) -> None:
    for kind in ("chat", "completions"):
        server.engine.hold()
        server.engine.told = WAITING
        more = {"progress": True}
        if kind == "chat":
            messages = CHAT["messages"]
            found: Any = client.chat.completions.create(model=MODEL, messages=messages, stream=True, extra_body=more)
        else:
            found = client.completions.create(model=MODEL, prompt="abc", stream=True, extra_body=more)
        first = next(found)
        assert first.choices == [] and first.longspan_progress[0] == TOLD
        server.engine.release()
        parts = [chunk.choices[0] for chunk in found if chunk.choices]
        text = [part.delta.content if kind == "chat" else part.text for part in parts]
        assert "".join(text) == server.engine.answer


def test_openais_accumulating_stream_reads_on(server: LiveServer, client: openai.OpenAI) -> None:
    server.engine.hold()
    server.engine.told = WAITING
    more = {"progress": True}
    with client.chat.completions.stream(model=MODEL, messages=CHAT["messages"], extra_body=more) as events:
        server.engine.release()
        assert events.get_final_completion().choices[0].message.content == server.engine.answer


@pytest.mark.parametrize("path", BODIES)
def test_progress_is_of_streams(http: httpx2.Client, path: str) -> None:
    for stream in (False, None):
        refused = http.post(path, json=BODIES[path] | {"stream": stream})
        error = refused.json()["error"]
        assert (refused.status_code, error["param"], error["code"]) == (400, "progress", "invalid_value")
    assert http.post(path, json=BODIES[path] | {"stream": False, "progress": False}).status_code == 200


def test_an_estimate_that_fails_does_not_end_the_answer(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(FakeEngine):
        def progress(self, request_id: str) -> Progress | None:
            raise ZeroDivisionError

    with live_server(Failing()) as server, waiting(server, "/v1/completions") as (_, told):
        while "cannot be told" not in caplog.text:
            pass
        server.engine.release()
        assert sum(len(chunk["choices"]) for chunk in told) == 11


async def test_a_client_that_does_not_read_is_told_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent waits for it, and so nothing is made that would have to be kept."""
    monkeypatch.setattr("longspan.entrypoints.openai.pace.INTERVAL_S", 0.0)
    asked = 0

    class Counting(FakeEngine):
        def progress(self, request_id: str) -> Progress | None:
            nonlocal asked
            asked += 1
            return Progress("prefill", None, 10**9, asked, 0, 0.0, None) if request_id in self.running else None

    engine, reads, sent = Counting(), asyncio.Event(), 0
    engine.hold()
    app = create_app(engine)
    body = json.dumps(COMPLETION).encode()

    async def receive() -> Message:
        nonlocal body
        if body:
            whole, body = body, b""
            return {"type": "http.request", "body": whole, "more_body": False}
        return await asyncio.Future()

    async def send(message: Message) -> None:
        nonlocal sent
        sent += 1
        assert message.get("status", 200) == 200
        if message["type"] == "http.response.body":
            await reads.wait()

    scope = {
        "type": "http", "method": "POST", "path": "/v1/completions", "raw_path": b"/v1/completions",
        "query_string": b"", "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "scheme": "http", "http_version": "1.1",
    }  # fmt: skip
    answer = asyncio.ensure_future(app(scope, receive, send))
    while sent < 2 and not answer.done():  # the headers, and the first news
        await asyncio.sleep(0)
    before = asked
    for _ in range(1000):
        await asyncio.sleep(0)
    assert asked == before and sent == 2
    reads.set()
    while sent < 5 and not answer.done():
        await asyncio.sleep(0)
    assert asked > before
    answer.cancel()
    await asyncio.wait({answer})
    app.state.context.close()


def test_many_readers_ask_rarely() -> None:
    pace = Pace()
    assert pace.interval_s == 0.01  # as set above
    for _ in range(200):
        pace.note(0.002)
    with pace.reader(), pace.reader():
        assert pace.interval_s == pytest.approx(2 * 0.002 / MOST_OF_THE_LOOP)
    assert pace.readers == 0
    assert INTERVAL_S == 0.5


@pytest.mark.parametrize("error", [
    EngineDeadError("dead"), EngineDrainingError("draining"), EngineStalledError("stalled"),
    QueueFullError("full", retry_after_s=3),
])  # fmt: skip
def test_every_refusal_for_now_says_when_to_come_again(
    server: LiveServer, http: httpx2.Client, error: Any
) -> None:
    server.engine.refuse = error
    refused = http.post("/v1/completions", json={"prompt": "x"})
    assert refused.status_code in (429, 503) and int(refused.headers["retry-after"]) >= 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("progress"), max_position_embeddings=512)


async def test_a_real_engine_tells_how_far_it_is(folder: Path) -> None:
    """While its workers' replies are held back, a prompt stands where it stands; one behind it waits."""
    config = EngineConfig(
        model=str(folder), instances=1, kv_tokens=2000, executor="inproc", dtype="float32", threads_per_device=1,
        overload="off",
    )  # fmt: skip
    engine = await start_engine(config)
    heard: list[Reply] = []
    try:
        transport = httpx2.ASGITransport(create_app(engine))
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=120) as http:
            done = await http.post("/v1/completions", json={"prompt": [5] * 200, "max_tokens": 2})
            assert float(done.headers["longspan-estimated-ttft"]) > 0
        await engine.idle()
        engine.core.on_reply = heard.append  # type: ignore[method-assign]
        params = engine.validate([5] * 400, SamplingParams(max_tokens=20, ignore_eos=True))
        streams = [engine.generate([5] * 400, params, name) for name in ("first", "second")]
        asked = [asyncio.ensure_future(anext(stream)) for stream in streams]
        while engine.progress("second") is None:
            await asyncio.sleep(0)
        first, second = engine.progress("first"), engine.progress("second")
        assert first is not None and second is not None
        assert (first.phase, first.place, first.num_prompt_tokens) == ("prefill", None, 400)
        assert (second.phase, second.place, second.num_computed_tokens) == ("waiting", 2, 0)
        assert second.estimate is not None and first.estimate is not None
        assert 0 < first.estimate.median_s <= first.estimate.quote_s
        assert second.waited_s < second.estimate.median_s <= second.estimate.quote_s
        del engine.core.on_reply
        while not all(each.done() for each in asked):
            for reply in heard:
                engine.core.on_reply(reply)
            heard.clear()
            await asyncio.sleep(0)
        for each, name in zip(asked, ("first", "second"), strict=True):
            progress, quote = engine.progress(name), each.result().quote
            assert progress is None or (progress.phase, progress.num_computed_tokens) == ("decode", 400)
            assert quote is not None and 0 < quote.median_s <= quote.quote_s <= quote.promised_s
        for stream in streams:
            await stream.aclose()
        assert engine.progress("first") is None
    finally:
        await engine.close()
