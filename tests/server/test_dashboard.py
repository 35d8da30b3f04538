"""The page: who may have it, what it is told, and that looking on costs the others nothing."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from longspan.config import EngineConfig
from longspan.core.events import RequestArrived
from longspan.engine.assembly import start_engine
from longspan.entrypoints.dashboard import viewers as viewers_module
from longspan.entrypoints.dashboard.files import PREFIX, PageFiles
from longspan.entrypoints.dashboard.viewers import MOST_PENDING, MOST_VIEWERS, Viewer, Viewers
from longspan.entrypoints.openai.app import create_app
from longspan.errors import EngineDeadError, QueueFullError
from longspan.sampling_params import SamplingParams
from tests.models.tiny import write_tiny_model
from tests.server.fake_engine import FakeEngine
from tests.server.live_server import LiveServer, live_server

EVENTS = "/dashboard/events"


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames come one after the other: no test waits for the clock."""
    monkeypatch.setattr(viewers_module, "INTERVAL_S", 0.001)
    monkeypatch.setattr(viewers_module, "LONGEST_S", 0.001)
    monkeypatch.setattr(viewers_module, "IDLE_S", 0.0)


# the page itself


def test_the_page_asks_nobody_else() -> None:
    """Nothing is fetched from elsewhere, and the browser is told to see to it."""
    with live_server() as server, httpx2.Client(base_url=server.url, timeout=30, trust_env=False) as http:
        page = http.get("/")
        assert page.headers["content-type"].startswith("text/html") and 'data-mode="live" data-key="none"' in page.text
        policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'" and set(policy.values()) <= {"'none'", "'self'"}
        seen, wanted = set[str](), ["/"]
        while wanted:
            answer = http.get(path := wanted.pop())
            seen.add(path)
            assert answer.status_code == 200, path
            assert http.get(path, headers={"if-none-match": answer.headers["etag"]}).status_code == 304
            assert path != "/" or not re.search(r"\s(style|on[a-z]+)=", answer.text)
            named = re.findall(r'(?:href|src)="([^"#]+)"', answer.text) if path == "/" else []
            if path.endswith(".js"):
                named = [PREFIX + name for name in re.findall(r'from "\./([\w.]+)"', answer.text)]
            wanted += [name for name in named if name not in seen]
            if path.endswith((".js", ".css", "/")) and "uplot" not in path:
                assert set(re.findall(r"https?://[^\s\"']+", answer.text)) <= {"http://www.w3.org/2000/svg"}
        assert http.get(f"{PREFIX}uplot.LICENSE.txt").text.startswith("The MIT License")
        assert http.head("/").status_code == 200 and http.get(f"{PREFIX}nothing.js").status_code == 404
    assert seen | {f"{PREFIX}uplot.LICENSE.txt"} == PageFiles("live").paths


def test_a_key_is_needed_for_what_it_shows() -> None:
    with (
        live_server(api_key=("secret",)) as server,
        httpx2.Client(base_url=server.url, timeout=30, trust_env=False) as http,
    ):
        assert 'data-key="needed"' in http.get("/").text
        assert http.get(f"{PREFIX}main.js").status_code == 200
        assert http.get(EVENTS).status_code == 401
        assert http.get(EVENTS, headers={"authorization": "Bearer wrong"}).status_code == 401
        with http.stream("GET", EVENTS, headers={"authorization": "Bearer secret"}) as answer:
            assert answer.status_code == 200
            assert next(frames(answer))["whole"] is True


async def test_without_keys_only_this_machine_is_told() -> None:
    app = create_app(FakeEngine())
    transport = httpx2.ASGITransport(app, client=("192.0.2.7", 1))
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        assert (await http.get("/")).status_code == 200
        assert (await http.get(EVENTS)).status_code == 403
    app.state.context.close()


# what it is told


def frames(answer: httpx2.Response) -> Iterator[dict[str, Any]]:
    for line in answer.iter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


@contextmanager
def looking(server: LiveServer) -> Iterator[Iterator[dict[str, Any]]]:
    with (
        httpx2.Client(base_url=server.url, timeout=30, trust_env=False) as http,
        http.stream("GET", EVENTS) as answer,
    ):
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield frames(answer)


def test_the_whole_first_then_changes() -> None:
    engine = FakeEngine()
    with live_server(engine) as server:
        assert engine.watched == []  # nobody looks, so nothing is worked out
        with looking(server) as told:
            first = next(told)
            assert first["whole"] and first["about"]["model"] == engine.model_name
            assert abs(first["at"] - time.time()) < 60 and [each[0] for each in first["instances"]] == [0, 1]
            engine.arrive(RequestArrived("cmpl-a-1", 7, 9))
            with looking(server) as later:
                whole = next(later)
                assert whole["whole"] and [row[1] for row in whole["requests"]] == ["cmpl-a-1"]
            changes = [next(told) for _ in range(2)]
            while not any(frame.get("requests") for frame in changes):
                changes.append(next(told))
            assert not any(frame.get("whole") for frame in changes) and len(engine.watched) == 1
        wait_until(lambda: engine.watched == [])


def test_a_server_that_stops_does_not_wait_for_who_looks() -> None:
    engine = FakeEngine()
    with live_server(engine) as server, looking(server) as told:
        next(told)
        engine.stalled = "batch 7 does not end"
        assert any("batch 7" in frame.get("state", "") for frame in told)
        engine.stalled, engine.draining = None, True
        assert list(told)[-1]["state"].startswith("the server is stopping")
        engine.error = "a worker died"
        assert httpx2.get(f"{server.url}{EVENTS}", timeout=30, trust_env=False).status_code == 503


def wait_until(holds: Any) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


# those who look


async def test_frames_are_made_once_for_all() -> None:
    engine = FakeEngine()
    viewers = Viewers(engine)
    told = [viewers.join() for _ in range(MOST_VIEWERS)]
    with pytest.raises(QueueFullError):
        viewers.join()
    streams = [viewer.frames() for viewer in told]
    firsts = [await anext(stream) for stream in streams]
    nexts = [await anext(stream) for stream in streams]
    assert len({id(data) for data in firsts}) == len({id(data) for data in nexts}) == 1 == len(engine.watched)
    for viewer in told:
        viewers.leave(viewer)
    await until(lambda: engine.watched == [])
    again = viewers.join()  # whoever comes later begins anew
    assert b'"whole":true' in await anext(again.frames())
    viewers.leave(again)


async def test_who_does_not_read_is_dropped() -> None:
    """Frames do not gather for it, and the others are told on."""
    viewers = Viewers(FakeEngine())
    slow, quick = viewers.join(), viewers.join()
    stream = quick.frames()
    for _ in range(3 * MOST_PENDING):
        await anext(stream)
    await until(lambda: slow.dropped)
    assert viewers.num_told == 1 and not quick.dropped
    assert [data async for data in slow.frames()] == []
    viewers.leave(slow)
    viewers.leave(quick)
    assert viewers.num_viewers == 0


def test_a_client_that_does_not_read_holds_up_nobody() -> None:
    """Over a real connection, whose buffers are full of large frames."""
    engine = FakeEngine()
    with live_server(engine) as server, looking(server) as reading, looking(server) as ignored:
        next(reading)
        next(ignored)
        for number in range(96):  # rows with long ids, all of which change with each frame
            engine.arrive(RequestArrived(f"{number}-" + "x" * 2000, 7, 9))
        fleet = engine.watched[0].fleet
        for _ in range(60):
            for life in fleet.lives.values():
                life.computed += 1
            next(reading)
        assert len(engine.watched) == 1


async def test_what_fails_there_ends_the_page_alone(caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine()
    viewers = Viewers(engine)
    viewer = viewers.join()
    stream = viewer.frames()
    await anext(stream)
    watched = engine.watched[0]
    watched.read(1.0, None, (None,), ())  # type: ignore[arg-type]  # no such thing happens
    watched.read(2.0, RequestArrived("later", 1, 1), (), (object(),))  # type: ignore[arg-type]  # nor this
    assert watched.failed and "cannot be kept up to date" in caplog.text
    await asyncio.wait_for(drain(viewer), 30)
    viewers.leave(viewer)


async def drain(viewer: Viewer) -> None:
    async for _ in viewer.frames():
        pass


async def until(holds: Any) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.001)


# a real engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("dashboard"), max_position_embeddings=512)


async def test_it_shows_what_the_metrics_say(folder: Path) -> None:
    """At every moment, also to those who begin to look while requests run."""
    config = EngineConfig(
        model=str(folder), instances=2, kv_tokens=1000, executor="inproc", dtype="float32", threads_per_device=1,
        overload="off",
    )  # fmt: skip
    engine = await start_engine(config)
    compared = 0

    async def ask(number: int) -> None:
        params = SamplingParams(temperature=0, max_tokens=5 + number % 24, ignore_eos=True)
        async for _ in engine.generate([5] * (40 * (1 + number % 7)), params, f"r{number}"):
            pass

    async def look(rounds: int) -> None:
        nonlocal compared
        with engine.watching() as view:
            for _ in range(rounds):
                asked, stats = view.frames(None, None), engine.stats()
                frame = json.loads((await asked).changes.removeprefix(b"data: "))
                assert (frame["running"], frame["waiting"]) == (stats.num_running, stats.num_waiting)
                assert [each[1] for each in frame["instances"]] == list(stats.kv_tokens_used_by_instance)
                assert [each[2] for each in frame["instances"]] == list(stats.kv_tokens_cached_by_instance)
                compared += bool(frame["running"] and sum([each[1] for each in frame["instances"]]))
                await asyncio.sleep(0.002)

    looks, asked = [asyncio.ensure_future(look(40))], list[asyncio.Future[None]]()
    async with asyncio.timeout(60):
        while compared <= 20:
            looks.append(asyncio.ensure_future(look(20)))
            asked += [asyncio.ensure_future(ask(len(asked) + number)) for number in range(24)]
            await asyncio.wait(asked)
    await asyncio.gather(*asked, *looks)
    observation = engine.core.records.observation
    assert not observation.num_views and observation.pid is None
    with suppress(EngineDeadError):
        await engine.close()


async def test_who_begins_to_look_sees_what_was(folder: Path) -> None:
    """As far as it is remembered: what ran, who ended, how long it took."""
    config = EngineConfig(
        model=str(folder), instances=2, kv_tokens=1000, executor="inproc", dtype="float32", threads_per_device=1,
    )  # fmt: skip
    engine = await start_engine(config)
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    for number in range(3):
        async for _ in engine.generate([5 + number] * 40, params, f"r{number}"):
            pass
    await engine.idle()
    viewers = Viewers(engine)
    viewer = viewers.join()
    whole = json.loads((await anext(viewer.frames())).removeprefix(b"data: "))
    viewers.leave(viewer)
    assert [row[1] for row in whole["ended"]] == ["r0", "r1", "r2"]
    assert [row[3] for row in whole["ended"]] == [5, 5, 5] and all(row[5] > 0 for row in whole["ended"])
    ran = [row for row in whole["spans"] if row[4] != "move"]
    assert sum(row[8] for row in ran) == 3 * (40 + 4) and all(row[1] <= row[2] <= whole["at"] for row in ran)
    assert len({row[0] for row in whole["ended"]}) == 3
    await engine.close()
