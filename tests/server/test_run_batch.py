"""`longspan run-batch`: every line gets its result, and a run that was stopped goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from longspan.config import EngineConfig
from longspan.engine.protocol import EngineClient
from longspan.entrypoints import cli
from longspan.entrypoints.batch import command
from longspan.entrypoints.batch.command import run_batch
from longspan.errors import ConfigError, EngineDeadError, QueueFullError
from tests.models.tiny import SIZES, heads, write_tiny_engine_model
from tests.server.fake_engine import MODEL, FakeEngine

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def request(name: str, url: str = COMPLETIONS, **body: Any) -> dict[str, Any]:
    given = {"messages": [{"role": "user", "content": name}]} if url == CHAT else {"prompt": name}
    return {"custom_id": name, "method": "POST", "url": url, "body": {"model": MODEL, **given, **body}}


@pytest.fixture
def batch(tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Runs lines through a fake engine; returns the output's lines."""

    def run(*lines: Any, engine: FakeEngine | None = None, at_once: int = 4) -> list[dict[str, Any]]:
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        (tmp_path / "in.jsonl").write_text("\n".join(texts) + "\n")

        async def start(config: EngineConfig) -> EngineClient:
            made = engine or FakeEngine()
            made.gate.set()
            return made

        assert run_batch(EngineConfig(), tmp_path / "in.jsonl", tmp_path / "out.jsonl", at_once, start=start) == 0
        return results(tmp_path / "out.jsonl")

    return run


def results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_endpoint(batch, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = sorted(batch(request("a"), request("b", CHAT, temperature=0)), key=lambda result: result["line"])
    assert one.keys() == {"id", "custom_id", "response", "error", "line"}
    assert (one["custom_id"], one["line"], one["error"]) == ("a", 1, None)
    answer = one["response"]
    assert one["id"] == f"batch_req_{answer['request_id']}"
    assert (answer["status_code"], answer["body"]["choices"][0]["text"]) == (200, "Hello world")
    assert two["response"]["body"]["choices"][0]["message"]["content"] == "Hello world"
    assert "2 of 2 done; " in capsys.readouterr().err


def test_a_file_that_begins_with_a_byte_order_mark(batch) -> None:
    assert [result["custom_id"] for result in batch("\ufeff" + json.dumps(request("a")))] == ["a"]


@pytest.mark.parametrize(("line", "name", "code", "says"), [
    ("{", None, "invalid_line", "no batch request"),
    ("[1]", None, "invalid_line", "no batch request"),
    ('{"custom_id": "x", "url": "/v1/completions"}', "x", "invalid_line", "missing required field `body`"),
    ({**request("x"), "custom_id": 5}, None, "invalid_line", "custom_id"),
    ({**request("x"), "method": "GET"}, "x", "invalid_method", "must be POST"),
    ({**request("x"), "url": "http://example.com/v1"}, "x", "invalid_url", "such as /v1/chat/completions"),
    ({**request("x"), "url": "/v1/ü\n"}, "x", "invalid_url", "endpoint"),
    (request("x", stream=True), "x", "invalid_stream", "leave it out"),
    ({**request("x"), "url": "/v1/responses", "body": {"input": "a", "background": True}}, "x", "invalid_background",
     "whole answers"),
    (request("a"), "a", "duplicate_custom_id", "'a' is that of an earlier line"),
])  # fmt: skip
def test_lines_that_reach_no_endpoint(batch, line: Any, name: str | None, code: str, says: str) -> None:
    for _ in range(2):  # another run tells the same, once
        wrong, right = sorted(batch(request("a"), "", line, request("b")), key=lambda result: result["line"])[1:]
        assert (wrong["custom_id"], wrong["line"], wrong["response"]) == (name, 3, None)
        assert wrong["error"]["code"] == code and says in wrong["error"]["message"]
        assert right["response"]["status_code"] == 200


@pytest.mark.parametrize(("line", "status", "code"), [
    (request("x", model="other"), 404, "model_not_found"),
    (request("x", max_tokens=-1), 400, None),
    (request("x", max_tokens=10**6), 400, "context_length_exceeded"),
    ({**request("x"), "body": 5}, 400, None),
    ({**request("x"), "url": "/v1/nothing"}, 404, "unknown_url"),
    ({**request("x"), "url": "/v1/models"}, 405, "method_not_allowed"),
])  # fmt: skip
def test_what_an_endpoint_refuses_is_the_answer(batch, line: Any, status: int, code: str | None) -> None:
    (refused,) = batch(line)
    assert (refused["response"]["status_code"], refused["error"]) == (status, None)
    error = refused["response"]["body"]["error"]
    assert error["message"] and (code is None or error["code"] == code)


def test_who_finds_no_room_comes_again(batch) -> None:
    class Full(FakeEngine):
        refusals = 2

        def generate(self, *args: Any) -> Any:
            if self.refusals:
                self.refusals -= 1
                raise QueueFullError("full", retry_after_s=0.01)
            return super().generate(*args)

    assert [result["response"]["status_code"] for result in batch(request("a"), engine=Full())] == [200]


def test_no_more_at_once_than_is_said(batch) -> None:
    class Counting(FakeEngine):
        most = 0

        async def generate(self, *args: Any) -> Any:
            async for output in super().generate(*args):
                self.most = max(self.most, len(self.running))
                yield output

    engine = Counting()
    assert len(batch(*(request(str(i)) for i in range(20)), engine=engine, at_once=3)) == 20
    assert engine.most == 3


def test_what_is_answered_is_not_asked_again(batch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [request(str(i)) for i in range(6)]
    first = batch(*lines[:3], request("bad", max_tokens=-1))
    with (tmp_path / "out.jsonl").open("a") as file:
        failed = {"status_code": 500, "request_id": "r", "body": {}}
        file.write(json.dumps({"id": "r", "custom_id": "3", "response": failed, "error": None, "line": 4}) + "\n")
        file.write('{"id": "batch_req_cut')
    engine = FakeEngine()
    again = batch(*lines, request("bad", max_tokens=-1), engine=engine)
    assert again[:4] == first
    assert sorted(result["custom_id"] for result in again[4:]) == ["3", "4", "5"]
    assert len(engine.prompts) == 3
    assert "7 of 7 done (4 of them before);" in capsys.readouterr().err
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize(("output", "says"), [
    ('{"id": "x", "custom_id": "other", "response": null, "error": null, "line": 1}\n', "'other', which is not in the"),
    ("not a result\n{}\n", "line 1 of .* is no batch result"),
])  # fmt: skip
def test_an_output_of_something_else_stays_as_it_is(batch, tmp_path: Path, output: str, says: str) -> None:
    (tmp_path / "out.jsonl").write_text(output)
    with pytest.raises(ConfigError, match=says):
        batch(request("a"))
    assert (tmp_path / "out.jsonl").read_text() == output


def test_what_cannot_be_begun(batch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no requests"):
        batch("", " ")
    with pytest.raises(ConfigError, match="max_concurrency is 0"):
        batch(request("a"), at_once=0)
    with pytest.raises(ConfigError, match="cannot be read"):
        run_batch(EngineConfig(), tmp_path / "none", tmp_path / "out.jsonl", 1)
    with pytest.raises(ConfigError, match="is the input"):
        run_batch(EngineConfig(), tmp_path / "in.jsonl", tmp_path / "in.jsonl", 1)


def test_an_engine_that_dies_leaves_what_is_there(batch, tmp_path: Path) -> None:
    class Dying(FakeEngine):
        async def generate(self, prompt: Any, *args: Any) -> Any:
            if self.tokenizer.decode(prompt) == "2":
                self.died.set()
                self.error = "worker 1 ended"
                raise EngineDeadError("the engine is dead: worker 1 ended")
            async for output in super().generate(prompt, *args):
                yield output

    lines = [request(str(i)) for i in range(4)]
    with pytest.raises(EngineDeadError, match="worker 1 ended"):
        batch(*lines, engine=Dying(), at_once=1)
    assert [result["custom_id"] for result in results(tmp_path / "out.jsonl")] == ["0", "1"]
    assert [result["custom_id"] for result in batch(*lines, at_once=1)] == ["0", "1", "2", "3"]


def test_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[EngineConfig, Path, Path, int]] = []
    monkeypatch.setattr(command, "run_batch", lambda *given: calls.append(given) or 0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "longspan.toml").write_text('[run-batch]\ninput_file = "i"\nkv_tokens = 99\n')
    monkeypatch.setenv("LONGSPAN_RUN_BATCH_OUTPUT_FILE", "o")
    assert cli.run(["run-batch", "some/model", "--max-concurrency", "7"]) == 0
    assert cli.run(["run-batch", "-i", "a", "-o", "b", "--overload", "warn", "--objective", "latency"]) == 0
    (first, *files), (second, *others) = calls
    assert (first.model, first.kv_tokens, first.overload, first.objective) == ("some/model", 99, "off", "throughput")
    assert (files, others) == ([Path("i"), Path("o"), 7], [Path("a"), Path("b"), 256])
    assert (second.overload, second.objective) == ("warn", "latency")


def test_a_process_that_is_stopped_and_goes_on(tmp_path: Path) -> None:
    """The real engine: half of it, SIGTERM, and the rest. The first line takes longer than all others, so that the run
    still goes on when it is stopped."""
    sizes = {**SIZES, "max_position_embeddings": 1024}
    write_tiny_engine_model(tmp_path / "tiny", LlamaConfig(**sizes, **heads(6, 3, 8)))
    lines: list[dict[str, Any]] = [
        {"custom_id": f"r{i}", "url": COMPLETIONS, "body": {"prompt": [5 + i % 90, 7], "max_tokens": 24, "seed": i}}
        for i in range(200)
    ]
    lines[0]["body"] |= {"max_tokens": 600, "ignore_eos": True}
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "out.jsonl"
    arguments = [sys.executable, "-m", "longspan", "run-batch", str(tmp_path / "tiny"),
                 "-i", str(tmp_path / "in.jsonl"), "-o", str(out), "--max-concurrency", "8", "--executor", "inproc",
                 "--instances", "1", "--threads-per-device", "1",
                 "--dtype", "float32", "--kv-tokens", "2000"]  # fmt: skip
    environment = {**os.environ, "LONGSPAN_CACHE": str(tmp_path / "cache")}
    with subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (out.is_file() and out.read_bytes().count(b"\n") >= 20):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        told = process.stderr.read()
    assert process.returncode == 128 + signal.SIGTERM
    assert "the same command goes on from what is in" in told
    before = results(out)
    assert 20 <= len(before) < 200
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True, timeout=300)
    assert f"200 of 200 done ({len(before)} of them before)" in done.stderr
    assert "HTTP Request" not in done.stderr
    after = results(out)
    assert after[: len(before)] == before
    assert sorted(result["custom_id"] for result in after) == sorted(line["custom_id"] for line in lines)
    assert {result["response"]["status_code"] for result in after} == {200}
