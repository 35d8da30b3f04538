"""One pool over all instances; workers that die or hang; a log that replays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import openai
import pytest

from tests.e2e.conftest import Server, serve, wait_for

MODEL = "smollm2-135m"


def test_the_pool_is_one(model) -> None:
    """Neither instance could hold the prompt; together they serve it. One too long is told both numbers."""
    with serve("--kv-tokens", "3000") as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        long = [1 + i % 40_000 for i in range(5000)]
        answer = client.completions.create(
            model=MODEL, prompt=long, max_tokens=8, temperature=0, extra_body={"ignore_eos": True}
        )
        assert answer.usage and (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5000, 8)
        server.wait_until_free()
        with pytest.raises(openai.BadRequestError, match=r"6100 tokens.*6000") as refused:
            client.completions.create(model=MODEL, prompt=(long * 2)[:6100], max_tokens=1)
        assert refused.value.code == "context_length_exceeded"
        with pytest.raises(openai.BadRequestError, match=r"9000 tokens.*8192|9000 tokens.*6000"):
            client.completions.create(model=MODEL, prompt=(long * 2)[:9000], max_tokens=1)


@pytest.mark.parametrize(
    ("blow", "says"), [(signal.SIGKILL, "ended unexpectedly"), (signal.SIGSTOP, "no sign of life")]
)
def test_a_lost_worker_fails_its_requests(model, blow: signal.Signals, says: str) -> None:
    """They are told why; /health says so until the process ends, with a status that has it started anew."""
    with serve("--worker-timeout-s", "3", "--dead-linger-s", "600") as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        stream = client.completions.create(
            model=MODEL, prompt="Once", max_tokens=2000, stream=True, extra_body={"ignore_eos": True}
        )
        next(stream)
        os.kill(server.workers()[0], blow)
        with pytest.raises(openai.APIError, match=f"worker 0 .*{says}"):
            list(stream)
        health = httpx2.get(f"{server.url}/health")
        assert health.status_code == 503 and says in health.text
        assert httpx2.get(f"{server.url}/ready").status_code == 503
        with pytest.raises(openai.InternalServerError, match=says):
            client.completions.create(model=MODEL, prompt="Once", max_tokens=1)
        assert server.gauge("vllm:num_requests_running") == 0
        assert server.stop() == 1


def test_a_batch_that_does_not_end_turns_health_to_503(model) -> None:
    """A worker stands still, and whoever looks at workers is told to be patient."""
    with serve("--worker-timeout-s", "600", "--stall-after-s", "1") as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        stream = client.completions.create(
            model=MODEL, prompt="Once", max_tokens=2000, stream=True, extra_body={"ignore_eos": True}
        )
        next(stream)
        worker = server.workers()[0]
        os.kill(worker, signal.SIGSTOP)
        wait_for(lambda: httpx2.get(f"{server.url}/health").status_code == 503)
        health = httpx2.get(f"{server.url}/health").json()["error"]
        assert health["code"] == "engine_stalled" and "on instances 0" in health["message"]
        os.kill(worker, signal.SIGCONT)
        wait_for(lambda: httpx2.get(f"{server.url}/health").status_code == 200)
        next(stream)
        stream.close()


def test_the_event_log_replays(model, tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    with serve("--event-log", str(log), "--kv-tokens", "2000") as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        client.completions.create(
            model=MODEL, prompt=["Hello " * n for n in (1, 40, 300, 700, 5)], max_tokens=12, temperature=0
        )
        leave(server)
        server.wait_until_free()
        assert server.stop() == 0
    replayed = subprocess.run(
        [sys.executable, "-m", "longspan", "replay", str(log)], capture_output=True, text=True, timeout=60
    )
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    assert len(log.read_text().splitlines()) > 12


def test_sigterm_lets_streams_finish(model) -> None:
    with serve() as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        stream = client.completions.create(
            model=MODEL, prompt="Once", max_tokens=50, stream=True, extra_body={"ignore_eos": True}
        )
        next(stream)
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: httpx2.get(f"{server.url}/ready").status_code == 503)
        assert len(list(stream)) == 49
        assert server.process.wait(60) == 0


def leave(server: Server) -> None:
    """A client that is gone after one token."""
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    with client.completions.create(model=MODEL, prompt="Once", max_tokens=500, stream=True) as stream:
        next(stream)
