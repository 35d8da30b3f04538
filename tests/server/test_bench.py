"""`longspan bench serve` against the real HTTP server, whose engine the tests hold and let go."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from longspan.config import EngineConfig
from longspan.entrypoints import cli
from longspan.entrypoints.bench import commands
from longspan.entrypoints.bench.options import ArrivalOptions, LengthOptions, ServeOptions
from longspan.errors import EngineDeadError
from longspan.outputs import RequestOutput
from longspan.sampling_params import SamplingParams
from tests.conftest import DATA
from tests.ports import closed_port
from tests.server.fake_engine import FakeEngine
from tests.server.live_server import LiveServer, live_server

SHORT = ("--token-ids", "1:250", "--input-len", "5:20", "--output-len", "4")


def bench(server: LiveServer, *options: str) -> int:
    return cli.run(["bench", "serve", "--url", server.url, *options])


def load(path: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads(path.read_text())
    return results


def meanwhile(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_every_request_is_sent_as_planned_and_recorded(
    server: LiveServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    options = ("--rate", "300", "--num-requests", "30", "--slo", "ttft=60,tpot=60", "--long-threshold", "12")
    assert bench(server, *SHORT, *options, "--json", str(out)) == 0
    results = load(out)
    requests = results["requests"]
    prompts = list(server.engine.prompts.values())[1:]  # the first one is the bench's own, to learn that all is well
    params = list(server.engine.params.values())[1:]
    assert sorted(map(len, prompts)) == sorted(r["num_prompt_tokens"] for r in requests) and len(requests) == 30
    assert all(1 <= token <= 250 for prompt in prompts for token in prompt)
    assert {(p.max_tokens, p.ignore_eos, p.temperature) for p in params} == {(4, True, 0.0)}
    for r in requests:
        times = r["token_times_s"]
        assert (r["outcome"], r["status"], r["message"]) == ("finished", 200, None)
        assert len(times) == r["num_output_tokens"] == 4
        assert r["sent_s"] <= times[0] and times == sorted(times) and times[-1] <= r["ended_s"]
    everyone = results["from_schedule"]["classes"]["all"]
    assert everyone["slo_attainment"] == 1 and everyone["itl_s"]["count"] == 30 * 3
    assert results["from_schedule"]["classes"]["long"]["num_requests"] == sum(len(p) >= 12 for p in prompts)
    assert results["model"] == "fake-model" and not results["interrupted"]
    shown = capsys.readouterr().out
    assert "30 of 30 requests finished" in shown and "short: " in shown and "within the SLO: 100.0 %" in shown


def test_the_same_seed_is_the_same_workload(server: LiveServer, tmp_path: Path) -> None:
    def prompts_sent(seed: str) -> list[list[int]]:
        server.engine.reset()
        assert bench(server, *SHORT, "--rate", "300", "--num-requests", "8", "--seed", seed) == 0
        return sorted(server.engine.prompts.values())

    assert prompts_sent("3") == prompts_sent("3") != prompts_sent("4")


def test_requests_leave_however_slow_the_server_is(server: LiveServer, tmp_path: Path) -> None:
    """No answer gets beyond its first token before all requests are there: a closed loop would wait forever."""
    server.engine.hold_after = 1

    def release_when_all_are_there() -> None:
        for _ in range(1 + 12):
            server.engine.admitted.get(timeout=30)
        server.engine.hold_after = None
        server.engine.release()

    helper = meanwhile(release_when_all_are_there)
    assert bench(server, *SHORT, "--rate", "500", "--num-requests", "12", "--json", str(tmp_path / "out.json")) == 0
    helper.join()
    requests = load(tmp_path / "out.json")["requests"]
    assert max(r["sent_s"] for r in requests) < min(r["ended_s"] for r in requests)


@dataclass
class CountingEngine(FakeEngine):
    """Knows how many requests it had at once."""

    peak: int = 0

    async def generate(
        self, prompt_token_ids: Sequence[int], params: SamplingParams, request_id: str
    ) -> AsyncIterator[RequestOutput]:
        async for output in super().generate(prompt_token_ids, params, request_id):
            self.peak = max(self.peak, len(self.running))
            yield output


@pytest.mark.parametrize("limit", [1, 3])
def test_a_limit_of_concurrency_holds_and_counts_as_waiting(tmp_path: Path, limit: int) -> None:
    engine, out = CountingEngine(), tmp_path / "out.json"
    with live_server(engine) as server:
        options = ("--rate", "5000", "--num-requests", "20", "--max-concurrency", str(limit), "--json", str(out))
        assert bench(server, *SHORT, *options) == 0
    assert 1 <= engine.peak <= limit
    results = load(out)
    assert all(r["sent_s"] >= r["departed_s"] for r in results["requests"])
    waited = results["from_schedule"]["classes"]["all"]["ttft_s"]["max"]
    assert waited > results["from_send"]["classes"]["all"]["ttft_s"]["max"]


def test_refusals_are_counted_with_their_first_message(
    server: LiveServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrived_at_s,num_prefill_tokens,num_decode_tokens\n0,10,3\n0,600,3\n0,700,3\n")
    out = tmp_path / "out.json"
    assert bench(server, "--token-ids", "1:250", "--trace", str(trace), "--json", str(out)) == 0
    results = load(out)
    ((failure),) = results["failures"]
    assert (failure["kind"], failure["count"]) == ("status 400", 2) and "600 tokens" in failure["first_message"]
    assert [r["outcome"] for r in results["requests"]] == ["finished", "refused", "refused"]
    assert "2 x status 400, first: the prompt has 600 tokens" in capsys.readouterr().out
    assert bench(server, "--token-ids", "1:250", "--input-len", "600", "--num-requests", "2", "--rate", "500") == 1


def test_an_answer_that_breaks_off(server: LiveServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.engine.fail_after = (2, EngineDeadError("worker 1 is gone"), None)
    assert bench(server, *SHORT, "--num-requests", "3", "--rate", "500") == 1
    shown = capsys.readouterr().out
    assert "3 x broken off, first: worker 1 is gone" in shown and "0 of 3 requests finished" in shown


def test_ctrl_c_keeps_what_there_is(
    server: LiveServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.engine.hold_after = 2
    out = tmp_path / "out.json"

    def interrupt_in_an_answer() -> None:
        for _ in range(2):
            server.engine.tokens_sent.get(timeout=30)
        os.kill(os.getpid(), signal.SIGINT)

    helper = meanwhile(interrupt_in_an_answer)
    options = ("--workload", "interval", "--rate", "1", "--num-requests", "1000", "--json", str(out))
    assert bench(server, *SHORT, *options) == 130
    helper.join()
    results = load(out)
    assert results["interrupted"] and 1 <= len(results["requests"]) < results["num_planned"]
    assert {r["outcome"] for r in results["requests"]} == {"unfinished"}
    assert "stopped after" in capsys.readouterr().out
    for _ in server.engine.prompts:  # the server was told
        server.engine.ended.get(timeout=30)
    assert not server.engine.running


def test_prompts_out_of_a_text(server: LiveServer, tmp_path: Path) -> None:
    text = "Call me Ishmael. Some years ago, never mind how long precisely. "
    (tmp_path / "text").write_text(text)
    options = ("--prompt-text-file", str(tmp_path / "text"), "--input-len", "30:200", "--output-len", "2")
    assert bench(server, *options, "--rate", "500", "--num-requests", "10") == 0
    prompts = [bytes(prompt).decode() for prompt in server.engine.prompts.values()][1:]
    assert all(30 <= len(prompt) <= 200 and prompt in text * 5 for prompt in prompts)
    assert len(set(prompts)) == 10


def test_a_real_trace_fitted_shares_prefixes_as_it_did(tmp_path: Path) -> None:
    trace = DATA / "mooncake_conversation_200.csv.gz"
    with live_server(FakeEngine(max_model_len=30_000)) as server:
        options = ("--token-ids", "1:250", "--trace", str(trace), "--rate", "500", "--num-requests", "3")
        assert bench(server, *options, "--max-total-tokens", "8000", "--json", str(tmp_path / "out.json")) == 0
        prompts = sorted(list(server.engine.prompts.values())[1:])
    requests = load(tmp_path / "out.json")["requests"]
    assert [r["num_prompt_tokens"] for r in requests][:2] == [6758, 7322]
    assert sorted(map(len, prompts)) == sorted(r["num_prompt_tokens"] for r in requests)
    assert len({tuple(prompt[:512]) for prompt in prompts}) == 1  # one block
    assert len({tuple(prompt[512:1024]) for prompt in prompts}) == 3


@pytest.mark.parametrize(
    "options",
    [
        ("--workload", "gamma", "--cv2", "9", "--input-len", "40"),
        ("--workload", "mixed", "--max-total-tokens", "300"),
        ("--workload", "medha_mix", "--trace", str(DATA / "azure_conv_2023_200.csv.gz"), "--max-total-tokens", "300"),
        ("--workload", "loongserve_zipf", "--trace", str(DATA / "loongserve_mixed_200.csv.gz"), "--fit", "scale",
         "--max-total-tokens", "300"),
    ],
)  # fmt: skip
def test_other_workloads(server: LiveServer, options: tuple[str, ...]) -> None:
    assert bench(server, "--token-ids", "1:250", "--rate", "500", "--num-requests", "5", *options) == 0
    assert len(server.engine.prompts) == 1 + 5


def test_a_server_that_is_not_one(server: LiveServer, capsys: pytest.CaptureFixture[str]) -> None:
    def error_of(*options: str) -> str:
        assert cli.run(["bench", "serve", *options]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    with closed_port() as port:
        assert "no server answers at" in error_of("--url", f"http://127.0.0.1:{port}")
    assert "status 404" in error_of("--url", f"{server.url}/elsewhere")
    assert "status 404" in error_of("--url", server.url, "--model", "nope")
    assert "token ids outside" in error_of("--url", server.url, "--token-ids", "5000:5001")
    with socket.create_server(("127.0.0.1", 0)) as sock:

        def hang_up() -> None:
            connection, _ = sock.accept()
            connection.recv(1)
            connection.close()

        helper = meanwhile(hang_up)
        broken = error_of("--url", f"http://127.0.0.1:{sock.getsockname()[1]}/v1")
        helper.join()
    assert "connection broke" in broken


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--slo ttft=fast", "ttft=0.5,tpot=0.05"),
        ("--slo latency=1", "ttft=0.5,tpot=0.05"),
        ("--input-len 9:3", "input_len is '9:3'"),
        ("--url ftp://x", "url is 'ftp://x'"),
        ("--rate 0", "rate is 0"),
        ("--duration 0.0001", "no request arrives"),
        ("--json nowhere/out.json", "there is no folder"),
        ("--prompt-text-file nowhere", "nowhere cannot be read"),
        ("--workload loongserve_zipf", "--trace"),
        ("--workload daily", "poisson"),
        (f"--trace {DATA}/moby_dick.txt.gz --trace {DATA}/moby_dick.txt.gz", "no common clock"),
    ],
)
def test_bad_options_are_one_line(
    server: LiveServer, capsys: pytest.CaptureFixture[str], options: str, says: str
) -> None:
    url = () if "--url" in options else ("--url", server.url)
    assert cli.run(["bench", "serve", *url, *options.split()]) == 2
    error = capsys.readouterr().err
    assert says in error and error.startswith("longspan: ") and error.count("\n") == 1


def test_a_bad_trace_is_named(server: LiveServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(server, "--trace", str(DATA / "moby_dick.txt.gz")) == 1
    assert "moby_dick.txt.gz, line 1: neither" in capsys.readouterr().err


def test_no_matplotlib(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert bench(server, "--plot", str(tmp_path / "out.png")) == 2
    error = capsys.readouterr().err
    assert "pip install matplotlib" in error and error.count("\n") == 1
    assert not server.engine.prompts


def test_a_plot(server: LiveServer, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    options = ("--rate", "500", "--num-requests", "10", "--long-threshold", "12", "--plot", str(out))
    assert bench(server, *SHORT, *options) == 0
    assert out.read_bytes().startswith(b"\x89PNG")


def test_help_explains_every_option_and_loads_no_model_code() -> None:
    check = (
        "import sys; from longspan.entrypoints import cli\n"
        "for name in ('serve', 'latency', 'throughput'): cli.run(['bench', name, '--help'])\n"
        "sys.exit(bool({'torch', 'transformers', 'numpy', 'fastapi', 'matplotlib'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    for owner, options in (("server", ServeOptions), ("lengths", LengthOptions), ("arrivals", ArrivalOptions)):
        for field in fields(options):
            assert f"--{field.name.replace('_', '-')}" in shown.stdout
            assert f"{owner}.{field.name}: " in (commands.serve.__doc__ or "")
    assert all(f"--{field.name.replace('_', '-')}" in shown.stdout for field in fields(EngineConfig))
