"""The page of an event log."""

from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from longspan.config import SchedulerConfig
from longspan.core.events import RequestArrived
from longspan.entrypoints import cli
from longspan.entrypoints.dashboard import command
from longspan.entrypoints.dashboard.command import MOST_STORIES, log_app, write_page
from longspan.entrypoints.dashboard.one_file import page_with
from longspan.metrics.event_log import EventLogWriter, read_event_log
from longspan.metrics.explain import explain
from longspan.metrics.fleet.log_frames import MOST_ROWS, frames_of
from longspan.metrics.request_list import list_requests
from tests.core.driver import Driver
from tests.event_log.runs import CONFIG, a_busy_day, write
from tests.metrics.test_fleet import Page


@pytest.fixture(scope="module")
def day() -> Driver:
    return a_busy_day()


def told(path: Path, most: int = 40) -> tuple[dict[str, Any], Page]:
    data = msgspec.json.decode(msgspec.json.encode(frames_of(read_event_log(path), most)))
    page = Page()
    for frame in data["frames"]:
        page.take(msgspec.json.encode(frame))
    return data, page


def test_a_log_tells_what_happened(day: Driver, tmp_path: Path) -> None:
    data, page = told(write(tmp_path / "events.jsonl", day))
    assert data["end"] == pytest.approx(day.log[-1][0] - day.log[0][0], abs=0.002)
    assert 10 < len(data["frames"]) <= 42 and data["frames"][0]["whole"] and data["frames"][0]["about"]
    assert [frame["at"] for frame in data["frames"]] == sorted(frame["at"] for frame in data["frames"])
    last = data["frames"][-1]
    assert (last["running"], last["waiting"], page.rows) == (0, 0, {})
    assert [each[1:3] for each in last["instances"]] == [[0, 0]] * CONFIG.num_instances
    outputs = {row[1]: row[3] for row in page.lists["ended"].values()}
    assert outputs == {name: life.outputs for name, life in day.lives.items()}


@pytest.mark.parametrize("lacking", ["begin", "middle"])
def test_a_log_that_lacks_a_piece(day: Driver, tmp_path: Path, lacking: str) -> None:
    """What is there is shown; of what is not, nothing is made up."""
    path = write(tmp_path / "events.jsonl", day, max_bytes=6000)
    pieces = sorted(tmp_path.iterdir(), key=lambda each: int(each.suffix[1:]) if each.suffix[1:].isdigit() else 0)
    assert len(pieces) > 4
    gone = pieces[:2] if lacking == "begin" else pieces[2:3]
    for each in gone:
        each.unlink()
    data, page = told(path)
    assert any(each[1] for frame in data["frames"] for each in frame["instances"])
    assert all(used >= 0 for frame in data["frames"] for _, used, _, _ in frame["instances"])
    assert data["frames"][-1]["running"] == 0 and not page.rows


def test_a_large_fleet_is_shown_in_few_steps(tmp_path: Path) -> None:
    """Or else a browser could not hold what it is told."""
    config = SchedulerConfig(policy="elastic_fcfs", num_instances=4096, kv_tokens=100)
    with EventLogWriter(tmp_path / "events.jsonl", config) as log:
        for number in range(400):
            log.write(float(number), RequestArrived(f"r{number}", 10, 5), [])
    shown = frames_of(read_event_log(tmp_path / "events.jsonl"))
    assert len(shown.frames) > 20 and sum(len(frame.instances) for frame in shown.frames) <= 2 * MOST_ROWS


async def test_the_server_of_a_log(day: Driver, tmp_path: Path) -> None:
    path = write(tmp_path / "events.jsonl", day)
    data = gzip.compress(msgspec.json.encode(frames_of(read_event_log(path), 20)))
    transport = httpx2.ASGITransport(log_app(path, data))
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        assert 'data-mode="log"' in (await http.get("/")).text
        assert (await http.get("/dashboard/log")).json()["name"] == "events.jsonl"
        story = (await http.get("/requests/request-7/story")).json()["stories"][0]
        assert story["request_id"] == "request-7" and story["lines"][0].startswith("request-7: ")
        assert (await http.get("/requests/nobody/story")).status_code == 404
        assert (await http.get("/", headers={"host": "evil.example"})).status_code == 400


def test_one_file_of_a_long_log_holds_the_stories_of_those_that_waited_longest(
    day: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "MOST_READ", 1)
    path, out = write(tmp_path / "events.jsonl", day), tmp_path / "fleet.html"
    write_page(path, out)
    held = re.search(r'id="log">([^<]+)<', out.read_text())
    assert held is not None
    told = json.loads(gzip.decompress(base64.b64decode(held[1])))["stories"]
    waits = {each.request_id: each.longest_wait_s for each in list_requests(read_event_log(path))}
    assert len(told) == MOST_STORIES
    assert min(waits[name] for name in told) >= max(wait for name, wait in waits.items() if name not in told)


def test_one_file_needs_no_server(day: Driver, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "events.jsonl", day)
    out = tmp_path / "fleet.html"
    assert cli.run(["dashboard", str(path), "--out", str(out)]) == 0
    text = out.read_text()
    assert "/dashboard/files/" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert "import {" not in text and "\nexport " not in text
    held = re.search(r'id="log">([^<]+)<', text)
    assert held is not None
    shown = json.loads(gzip.decompress(base64.b64decode(held[1])))
    assert shown["frames"] and shown["stories"].keys() == day.lives.keys()
    assert shown["stories"]["request-7"] == list(explain(path, "request-7").lines())
    assert page_with(b"") != page_with(b"x")
    assert cli.run(["dashboard", str(tmp_path / "none.jsonl")]) == 1
    assert "No such file" in capsys.readouterr().err
    assert cli.run(["dashboard", str(path), "--port", "70000"]) == 2
