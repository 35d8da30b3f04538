"""One pool over all instances; workers that die or hang; a log that replays. Of servers as users start them, whose
model is tiny, for all of this is the same whatever the model."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import openai
import pytest
from transformers import LlamaConfig

from tests.e2e.conftest import Server, serve, wait_for
from tests.models.tiny import SIZES, heads, write_tiny_engine_model

MODEL = "tiny"
SHORT = [5, 6, 7]
LONG_STREAM, ENDLESS = 1500, 8000
"""Tokens: of a stream that is read to its end, and of one that goes on whatever is done meanwhile."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / MODEL
    write_tiny_engine_model(folder, LlamaConfig(**SIZES | {"max_position_embeddings": 8192}, **heads(4, 2, 16)))
    return str(folder)


def client_of(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def stream_of(client: openai.OpenAI, tokens: int = LONG_STREAM) -> openai.Stream[openai.types.Completion]:
    """A long one, which has begun."""
    stream = client.completions.create(
        model=MODEL, prompt=SHORT, max_tokens=tokens, stream=True, stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    next(stream)
    return stream


def test_the_pool_is_one(tiny: str) -> None:
    """Neither instance could hold the prompt; together they serve it. One too long is told both numbers."""
    with serve(tiny, "--kv-tokens", "3000") as server:
        client = client_of(server)
        long = [3 + i % 90 for i in range(5000)]
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
    ("blow", "says"), [(signal.SIGKILL, "ended unexpectedly"), (signal.SIGSTOP, "no (sign of life|progress) for")]
)
def test_a_lost_worker_fails_its_requests(tiny: str, blow: signal.Signals, says: str) -> None:
    """They are told why; /health says so until the process ends, with a status that has it started anew. So it is where
    workers cannot go on without each other. (One that stands still had perhaps got nowhere before its last beat.)"""
    with serve(tiny, "--worker-timeout-s", "3", "--dead-linger-s", "600", "--transport", "gloo") as server:
        client = client_of(server)
        stream = stream_of(client, ENDLESS)
        os.kill(server.worker(0), blow)
        with pytest.raises(openai.APIError, match=f"worker 0 .*{says}"):
            list(stream)
        health = server.get("/health")
        assert health.status_code == 503 and re.search(says, health.text)
        assert server.get("/ready").status_code == 503
        with pytest.raises(openai.InternalServerError, match=says):
            client.completions.create(model=MODEL, prompt=SHORT, max_tokens=1)
        assert server.gauge("vllm:num_requests_running") == 0
        assert server.stop() == 1


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_streams_survive_a_lost_worker(tiny: str, blow: signal.Signals) -> None:
    """They pause, and go on with the same text; /health names the instance until it is back."""
    prompts = [SHORT, [3 + i % 90 for i in range(600)], [9, 8, 7]]
    settings = {"model": MODEL, "max_tokens": 300, "temperature": 0, "extra_body": {"ignore_eos": True}}
    options = ("--dtype", "float32", "--worker-timeout-s", "3", "--kv-tokens", "3000")
    with serve(tiny, *options, instances=3) as server:
        client = client_of(server)
        expected = [client.completions.create(prompt=prompt, **settings).choices[0].text for prompt in prompts]
        streams = [client.completions.create(prompt=prompt, stream=True, **settings) for prompt in prompts]
        begun = ["".join(next(stream).choices[0].text for _ in range(5)) for stream in streams]
        os.kill(server.worker(1), blow)
        wait_for(lambda: server.get("/health").json()["status"] == "degraded")
        assert "instance 1 (starting)" in server.get("/health").json()["missing"]
        texts = [
            text + "".join(chunk.choices[0].text for chunk in stream)
            for text, stream in zip(begun, streams, strict=True)
        ]
        assert texts == expected
        wait_for(lambda: server.get("/health").json() == {"status": "ok"})
        assert server.gauge("longspan:instances_lost") == 1 and server.gauge("longspan:instances_missing") == 0
        again = [client.completions.create(prompt=prompt, **settings).choices[0].text for prompt in prompts]
        assert again == expected
        server.wait_until_free()
        assert server.stop() == 0


def test_a_batch_that_does_not_end_turns_health_to_503(tiny: str) -> None:
    """A worker stands still, and whoever looks at workers is told to be patient."""
    with serve(tiny, "--worker-timeout-s", "600", "--stall-after-s", "1") as server:
        client = client_of(server)
        stream = stream_of(client, ENDLESS)
        worker = server.worker(0)
        os.kill(worker, signal.SIGSTOP)
        wait_for(lambda: server.get("/health").status_code == 503)
        health = server.get("/health").json()["error"]
        assert health["code"] == "engine_stalled" and "on instances 0" in health["message"]
        os.kill(worker, signal.SIGCONT)
        wait_for(lambda: server.get("/health").status_code == 200)
        next(stream)
        stream.close()


def test_the_event_log_replays(tiny: str, tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    with serve(tiny, "--event-log", str(log), "--kv-tokens", "2000") as server:
        client = client_of(server)
        client.completions.create(
            model=MODEL, prompt=[[5 + n % 90] * n for n in (1, 40, 300, 700, 5)], max_tokens=12, temperature=0
        )
        leave(server)
        server.wait_until_free()
        assert server.stop() == 0
    replayed = subprocess.run(
        [sys.executable, "-m", "longspan", "replay", str(log)], capture_output=True, text=True, timeout=60
    )
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    assert len(log.read_text().splitlines()) > 12


def test_sigterm_lets_streams_finish(tiny: str) -> None:
    with serve(tiny) as server:
        client = client_of(server)
        stream = stream_of(client)
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: server.get("/ready").status_code == 503)
        *_, last = stream
        assert last.usage and last.usage.completion_tokens == LONG_STREAM
        assert server.process.wait(60) == 0


def leave(server: Server) -> None:
    """A client that is gone after one token."""
    stream_of(client_of(server)).close()
