"""The page in a browser: beside the metrics of a server under load, and of an event log."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Browser, Page, expect
from prometheus_client.parser import text_string_to_metric_families

from acceptance.browser.conftest import MOST_MS
from acceptance.browser.fleets import ROOT, command, load, served, simulated
from longspan.config import SchedulerConfig
from longspan.core.actions import RefuseRequest
from longspan.core.events import RequestArrived
from longspan.engine.tokenizer import Tokenizer
from longspan.metrics.event_log import EventLogWriter, read_event_log
from longspan.metrics.fleet.log_frames import frames_of
from longspan.models.catalog import resolve_model
from tests.models.tiny import write_random_model

STATE = """() => ({
    running: document.getElementById('running').textContent, waiting: document.getElementById('waiting').textContent,
    used: [...document.querySelectorAll('#lane-rows .meter')].map((each) => Number(each.getAttribute('aria-valuenow'))),
})"""
FOCUSED = """() => {
    document.querySelector('#requests .id')?.focus();
    return document.activeElement.getAttribute('aria-label');
}"""
SIZES = ({"width": 1440, "height": 1000}, {"width": 1280, "height": 800}, {"width": 360, "height": 740})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    backend = Tokenizer.load(resolve_model("smollm2-135m")).backend
    return write_random_model(tmp_path_factory.mktemp("model"), backend, backend.get_vocab_size(), 4096)


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with served(folder) as url:
        yield url


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulated(tmp_path_factory.mktemp("log") / "events.jsonl")


@pytest.fixture
def watched(page: Page) -> Iterator[Page]:
    """Nothing is wrong in its console, and it asks nobody else."""
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    yield page
    assert said == []
    assert all(each.startswith(("http://127.0.0.1:", "file:", "data:", "blob:")) for each in asked), asked


def gauges(url: str) -> dict[str, Any]:
    """The same numbers, from /metrics."""
    text = httpx2.get(f"{url}/metrics", timeout=30, trust_env=False).text
    found: dict[str, Any] = {"used": []}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in ("vllm:num_requests_running", "vllm:num_requests_waiting"):
                found[sample.name.rpartition("_")[2]] = f"{sample.value:.0f}"
            if sample.name == "longspan:instance_kv_tokens_used":
                found["used"].append(int(sample.value))
    return found


def test_it_shows_what_the_metrics_say(watched: Page, url: str) -> None:
    """Under load: between two scrapes that agree it shows what both say, and of what grows what lies between."""
    watched.goto(url)
    expect(watched.locator("#status .text")).to_have_text("live")
    agreed = 0
    with load(url):
        watched.wait_for_function("() => Number(document.getElementById('running').textContent) > 2")
        for _ in range(400):
            before = gauges(url)
            watched.wait_for_timeout(300)  # where so much is done, a frame is a quarter of a second old at most
            shown, after = watched.evaluate(STATE), gauges(url)
            same = before["running"] == after["running"] and before["waiting"] == after["waiting"]
            if same and all(a <= b for a, b in zip(before["used"], after["used"], strict=True)):
                if (shown["running"], shown["waiting"]) != (before["running"], before["waiting"]):
                    continue  # they changed and changed back meanwhile
                agreed += all(
                    a <= b <= c for a, b, c in zip(before["used"], shown["used"], after["used"], strict=True)
                )
            if agreed >= 3:
                break
    assert agreed >= 3
    expect(watched.locator("#running")).to_have_text("0")
    for _ in range(60):
        if watched.evaluate(STATE) == gauges(url):
            break
        watched.wait_for_timeout(500)  # for its last frame
    else:
        raise AssertionError(f"at rest it shows {watched.evaluate(STATE)}, and the metrics say {gauges(url)}")


def test_a_story_is_opened_with_the_keyboard(watched: Page, url: str) -> None:
    watched.goto(url)
    with load(url, clients=10, rounds=4):
        name = watched.wait_for_function(FOCUSED).json_value()
        watched.keyboard.press("Enter")
        story = watched.locator("#story")
        expect(story.locator("#story-lines")).to_contain_text("prompt tokens, at most")
        assert name.removeprefix("Story of ") in (story.locator("h3").text_content() or "")
        watched.keyboard.press("Escape")
        expect(story).to_be_hidden()
    expect(watched.locator("#ended .id").first).to_be_visible()
    watched.keyboard.press("Tab")
    reached = set()
    for _ in range(12):  # everything that does something is reached
        reached.add(watched.evaluate("document.activeElement.id || document.activeElement.className"))
        watched.keyboard.press("Shift+Tab")
    assert {"theme", "skip"} <= reached or "id" in reached


def test_a_key_is_asked_for_and_kept(page: Page, folder: Path) -> None:
    with served(folder, "--api-key", "a-secret") as url:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        expect(page.get_by_label("API key")).to_be_focused()
        assert not any(each.endswith("/events") for each in asked)
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#key-error")).to_have_text("This is not one of the server's keys.")
        page.get_by_label("API key").fill("a-secret")
        page.keyboard.press("Enter")
        expect(page.locator("#status .text")).to_have_text("live")
        expect(page.locator("#lane-rows li")).to_have_count(3)
        page.reload()
        expect(page.locator("#status .text")).to_have_text("live")
        assert "a-secret" not in page.content() and page.evaluate("localStorage.length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES, ids=["1440px", "1280px", "360px"])
def test_nothing_sticks_out_and_all_can_be_read(chromium: Browser, log: Path, scheme: Any, size: Any) -> None:
    with (
        command("dashboard", str(log), says=r"at (http://\S+)") as url,
        chromium.new_context(viewport=size, color_scheme=scheme) as context,
    ):
        context.set_default_timeout(MOST_MS)
        page = context.new_page()
        page.goto(url)
        expect(page.locator("#lane-rows li")).to_have_count(4)
        page.locator("#time").press("End")
        page.locator("#time").evaluate(
            "(slider) => { slider.value = slider.max * 0.6; slider.dispatchEvent(new Event('input')); }"
        )
        expect(page.locator("#requests tbody tr").first).to_be_visible()
        assert page.evaluate("document.documentElement.dataset.theme") == scheme
        assert page.evaluate("document.scrollingElement.scrollWidth") <= size["width"]
        wrong = page.evaluate(CONTRASTS)
        assert wrong == []
        if size["width"] >= 1280:
            assert page.evaluate(CUT_OFF) == []
            legends = page.evaluate(LEGENDS)
            assert len(legends) == 4 and all(plot <= legend for plot, legend in legends)  # beside their plots


CUT_OFF = """() => [...document.querySelectorAll('.scroll')].filter((each) => each.scrollWidth > each.clientWidth)
    .map((each) => each.textContent.slice(0, 60))"""
LEGENDS = """() => [...document.querySelectorAll('.beside')].map((each) => [
    each.querySelector('.uplot').getBoundingClientRect().right,
    each.querySelector('.legend').getBoundingClientRect().left,
])"""

CONTRASTS = """() => {
    const paint = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    const channel = (value) => value <= 10.31 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4;
    const luminance = (colour) => {
        paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1);
        const [r, g, b] = paint.getImageData(0, 0, 1, 1).data;
        return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
    };
    const wrong = [];
    for (const node of document.querySelectorAll('h1, h2, h3, p, td, th, small, b, span, button, label, output')) {
        const own = [...node.childNodes].some((each) => each.nodeType === 3 && each.textContent.trim());
        if (!own || !node.checkVisibility()) continue;
        let behind = node, fill = 'rgba(0, 0, 0, 0)';
        while (behind && /rgba\\(.*, 0\\)|transparent/.test(fill)) {
            fill = getComputedStyle(behind).backgroundColor;
            behind = behind.parentElement;
        }
        const [a, b] = [luminance(getComputedStyle(node).color), luminance(fill)].sort((x, y) => y - x);
        const ratio = (a + 0.05) / (b + 0.05);
        if (ratio < 4.5) wrong.push([node.tagName, node.className, node.textContent.slice(0, 30), ratio.toFixed(2)]);
    }
    return wrong;
}"""


def test_a_log_is_replayed(watched: Page, log: Path) -> None:
    """What it shows at a moment is what the log says of it; and it plays."""
    told = json.loads(json.dumps([(frame.at, frame.running, frame.waiting, frame.instances)
                                  for frame in frames_of(read_event_log(log)).frames]))  # fmt: skip
    with command("dashboard", str(log), says=r"at (http://\S+)") as url:
        watched.goto(url)
        expect(watched.locator("#lane-rows li")).to_have_count(4)
        for share in (0.3, 0.8, 0.1):  # forth and back
            at, running, waiting, instances = told[int(share * len(told))]
            watched.locator("#time").evaluate(
                "(slider, at) => { slider.value = at; slider.dispatchEvent(new Event('input')); }", at + 0.01
            )
            shown = watched.evaluate(STATE)
            assert shown == {"running": str(running), "waiting": str(waiting), "used": [each[1] for each in instances]}
        watched.locator("#requests .id").first.click()
        expect(watched.locator("#story-lines")).to_contain_text("prompt tokens, at most")
        watched.keyboard.press("Escape")
        before = float(watched.locator("#time").input_value())
        watched.select_option("#speed", "5")  # so that it is not at its end when a slow machine comes to stop it
        watched.locator("#play").press("Enter")
        watched.wait_for_function("(before) => Number(document.getElementById('time').value) > before + 5", arg=before)
        watched.locator("#play").press("Enter")
        assert watched.locator("#play").get_attribute("aria-label") == "Play"


def test_who_has_the_focus_keeps_it(watched: Page, log: Path) -> None:
    """Whatever becomes of its request: others come and go before it, it waits, computes, and ends."""
    frames = frames_of(read_event_log(log)).frames
    with command("dashboard", str(log), says=r"at (http://\S+)") as url:
        watched.goto(url)
        name = None
        tables = []
        for frame in frames[len(frames) // 4 :]:
            watched.locator("#time").evaluate(
                "(slider, at) => { slider.value = at; slider.dispatchEvent(new Event('input')); }", frame.at + 0.01
            )
            if name is None and watched.locator("#queue .id").count() > 2:
                watched.locator("#queue .id").last.focus()
                name = watched.evaluate("document.activeElement.getAttribute('aria-label')")
            if name is not None:
                label, id_of_table = "getAttribute('aria-label')", "closest('table')?.id"
                focused, table = watched.evaluate(
                    f"[document.activeElement.{label}, document.activeElement.{id_of_table}]"
                )
                assert focused == name
                tables.append(table)
                if table == "ended":
                    break
    assert set(tables) == {"queue", "requests", "ended"}


HOSTILE = ("<img src=x onerror=alert(1)>", '"><script>alert(2)</script>', "a/b?c#d%2e&e", "__proto__",
           "\u202e\\'`${7}", "x" * 400)  # fmt: skip
"""Names of requests that a client may choose, or who writes a log: what a page may do with them is show them."""


def test_names_are_shown_and_nothing_else(watched: Page, tmp_path: Path) -> None:
    """In the tables, in stories, and as the log's own name; served, and as one file."""
    config = SchedulerConfig(policy="elastic_fcfs", num_instances=2, kv_tokens=1000)
    with EventLogWriter(tmp_path / "<b>log.jsonl", config) as log:
        for number, name in enumerate(HOSTILE):
            arrived = RequestArrived(name, 10, 5)
            refused = [RefuseRequest(name, "<u>no</u>", "late", 3.0)] if number % 2 else []
            log.write(1.0 + number, arrived, refused)
    assert log.path is not None
    out = tmp_path / "fleet.html"
    shown = [sys.executable, "-m", "longspan", "dashboard", str(log.path)]
    subprocess.run([*shown, "--out", str(out)], cwd=ROOT, check=True)
    opened: list[str] = []
    watched.on("dialog", lambda dialog: (opened.append(dialog.message), dialog.dismiss()))
    with command("dashboard", str(log.path), says=r"at (http://\S+)") as url:
        for place in (url, out.as_uri()):
            watched.goto(place)
            watched.locator("#time").press("End")
            for table in ("#queue", "#ended"):
                buttons = watched.locator(f"{table} .id")
                expect(buttons).to_have_count(3)
                for number in range(3):
                    name = (buttons.nth(number).get_attribute("aria-label") or "").removeprefix("Story of ")
                    assert name in HOSTILE
                    buttons.nth(number).click()
                    expect(watched.locator("#story-lines h3")).to_contain_text("prompt tokens, at most")
                    assert name.strip() in (watched.locator("#story-lines h3").text_content() or "")
                    watched.keyboard.press("Escape")
            made = "main :is(img, script, u, i:not(.key)), dialog :is(img, script, u, i)"
            assert watched.locator(made).count() == 0
    assert opened == []


def test_one_file_is_the_same_page(watched: Page, log: Path, tmp_path: Path) -> None:
    out = tmp_path / "fleet.html"
    subprocess.run([sys.executable, "-m", "longspan", "dashboard", str(log), "--out", str(out)], cwd=ROOT, check=True)
    watched.goto(out.as_uri())
    expect(watched.locator("#lane-rows li")).to_have_count(4)
    watched.locator("#time").focus()
    watched.keyboard.press("End")
    expect(watched.locator("#running")).to_have_text("0")
    button = watched.locator("#ended .id").first
    expect(button).to_be_visible()
    button.click()  # stories are in it
    expect(watched.locator("#story-lines")).to_contain_text("prompt tokens, at most")
