from __future__ import annotations

import threading
from collections.abc import Iterator

import httpx2
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from longspan.errors import EngineDeadError, QueueFullError
from longspan.metrics.prometheus import ServerMetrics, token_buckets
from longspan.outputs import RequestOutput, RequestTimes
from tests.server.fake_engine import MODEL, FakeEngine, FakeTokenizer
from tests.server.live_server import LiveServer, live_server
from tests.server.test_server_disconnect import send

Samples = dict[str, list[tuple[dict[str, str], float]]]
OURS = {"model_name": MODEL, "engine": "0"}


def samples(text: str) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def value(found: Samples, name: str, **labels: str) -> float:
    matching = [v for found_labels, v in found[name] if OURS | labels == found_labels]
    assert len(matching) == 1, found[name]
    return matching[0]


def test_metrics_of_a_server() -> None:
    engine = FakeEngine()
    with (
        live_server(engine) as server,
        httpx2.Client(base_url=server.url, timeout=30, trust_env=False) as http,
    ):
        http.post("/v1/completions", json={"prompt": "abc"})
        http.post("/v1/completions", json={"prompt": "abc", "max_tokens": 5, "stream": True, "n": 2})
        answer = http.get("/metrics")
        assert http.head("/metrics").status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    found = samples(answer.text)
    assert value(found, "vllm:num_requests_running") == 0
    assert value(found, "vllm:num_requests_waiting") == 3
    assert value(found, "vllm:kv_cache_usage_perc") == 0.25
    assert value(found, "vllm:cache_config_info", block_size="1", num_gpu_blocks="1024") == 1
    no_lora = {"max_lora": "0", "running_lora_adapters": "", "waiting_lora_adapters": ""}
    assert value(found, "vllm:lora_requests_info", **no_lora) == 0
    assert value(found, "vllm:prompt_tokens_total") == 9
    assert value(found, "vllm:generation_tokens_total") == 21
    assert value(found, "vllm:request_success_total", finished_reason="stop") == 1
    assert value(found, "vllm:request_success_total", finished_reason="length") == 2
    assert value(found, "vllm:request_success_total", finished_reason="abort") == 0
    assert value(found, "vllm:num_preemptions_total") == 5
    assert value(found, "longspan:num_migrations_total") == 4
    assert value(found, "longspan:non_finite_logits_total") == 6
    for name, count in {
        "time_to_first_token_seconds": 3,
        "inter_token_latency_seconds": 18,
        "e2e_request_latency_seconds": 3,
        "request_queue_time_seconds": 3,
        "request_prompt_tokens": 3,
        "request_generation_tokens": 3,
    }.items():
        assert value(found, f"vllm:{name}_count") == count
        assert value(found, f"vllm:{name}_bucket", le="+Inf") == count
    assert value(found, "vllm:request_generation_tokens_sum") == 21
    assert value(found, "longspan:instance_kv_tokens_used", instance="1") == 100


def endings(server: LiveServer) -> dict[str, float]:
    """How many requests ended for each reason; what did not happen is left out."""
    found = samples(httpx2.get(f"{server.url}/metrics", timeout=30, trust_env=False).text)
    ended = {labels["finished_reason"]: count for labels, count in found["vllm:request_success_total"]}
    return {reason: count for reason, count in ended.items() if count}


@pytest.fixture
def fresh() -> Iterator[LiveServer]:
    """A server that has counted nothing yet."""
    with live_server(FakeEngine()) as server:
        yield server


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_whose_client_leaves_counts_as_aborted(fresh: LiveServer, n: int) -> None:
    fresh.engine.hold_after = 2
    with openai.OpenAI(base_url=f"{fresh.url}/v1", api_key="none", max_retries=0) as client:
        with client.completions.create(model=MODEL, prompt="x", stream=True, n=n) as chunks:
            next(iter(chunks))
        ends_soon(fresh, {"abort": n})


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_a_client_that_leaves_before_its_first_token_is_counted(fresh: LiveServer, stream: bool, n: int) -> None:
    fresh.engine.hold()
    body: dict[str, object] = {"prompt": "x", "n": n, "stream": stream}
    with send(fresh, "/v1/completions", body):
        for _ in range(n):
            fresh.engine.admitted.get(timeout=30)
    ends_soon(fresh, {"abort": n})


def test_a_client_that_leaves_while_its_text_is_tokenised_is_counted() -> None:
    began, go_on = threading.Event(), threading.Event()

    class SlowTokenizer(FakeTokenizer):
        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            began.set()
            assert go_on.wait(30)
            return super().encode(text)

    engine = FakeEngine(max_model_len=8192)
    engine.tokenizer = SlowTokenizer()
    with live_server(engine) as server:
        with send(server, "/v1/completions", {"prompt": "x" * 5000}):
            assert began.wait(30)
        ends_soon(server, {"abort": 1})  # its work still runs
        go_on.set()
    assert not engine.prompts


def ends_soon(server: LiveServer, expected: dict[str, float]) -> None:
    """The server sees that a connection was closed when it comes to that: it is asked until it has."""
    while sum((seen := endings(server)).values()) < sum(expected.values()):
        pass
    assert seen == expected


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_fails_ends_under_error(fresh: LiveServer, stream: bool) -> None:
    fresh.engine.fail_after = (2, EngineDeadError("worker 1 is gone"), None)
    body = {"prompt": "x", "n": 2, "stream": stream}
    httpx2.post(f"{fresh.url}/v1/completions", json=body, timeout=30, trust_env=False)
    ends_soon(fresh, {"error": 2})
    assert refused(fresh) == {"engine_dead": 1}


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_is_refused_ends_under_nothing_else(fresh: LiveServer, stream: bool) -> None:
    with httpx2.Client(base_url=fresh.url, trust_env=False, timeout=30) as http:
        http.post("/v1/completions", json={"prompt": "x" * 1000, "stream": stream})
        http.post("/v1/completions", json={"prompt": "x", "max_tokens": -1, "stream": stream})
        http.post("/v1/completions", json={"prompt": "x", "model": "nope", "stream": stream})
        fresh.engine.refuse = QueueFullError("full", retry_after_s=1)
        http.post("/v1/completions", json={"prompt": ["x", "y"], "stream": stream})
    assert endings(fresh) == {}
    assert refused(fresh) == {
        "context_length_exceeded": 1, "invalid_value": 1, "model_not_found": 1, "rate_limit_exceeded": 1,
    }  # fmt: skip


def test_a_dead_engine_runs_nothing(fresh: LiveServer) -> None:
    def gauges() -> tuple[float, ...]:
        found = samples(httpx2.get(f"{fresh.url}/metrics", timeout=30, trust_env=False).text)
        names = ("vllm:num_requests_waiting", "vllm:kv_cache_usage_perc", "longspan:engine_up")
        return tuple(value(found, name) for name in names)

    assert gauges() == (3, 0.25, 1)
    fresh.engine.die("worker 1 is gone")
    assert gauges() == (0, 0, 0)


def metrics() -> ServerMetrics:
    return ServerMetrics(model_name=MODEL, max_model_len=100, stats=FakeEngine().stats)


def output(tokens: int, times: RequestTimes) -> RequestOutput:
    return RequestOutput(
        "r", num_prompt_tokens=7, num_output_tokens=tokens, token_ids=(1,) * tokens, times=times
    )


def test_times_are_taken_from_the_engines_clock() -> None:
    measured = metrics()
    arrival = measured.arrive()
    request = arrival.request()
    request.observe(output(1, RequestTimes(arrived=10.0, scheduled=11.0, first_token=13.0, last_token=13.0)))
    request.observe(output(2, RequestTimes(arrived=10.0, scheduled=11.0, first_token=13.0, last_token=14.0)))
    arrival.end("abort")
    arrival.end("error")
    found = samples(measured.render()[0].decode())
    assert value(found, "vllm:time_to_first_token_seconds_sum") == pytest.approx(3.0)
    assert value(found, "vllm:request_queue_time_seconds_sum") == pytest.approx(1.0)
    assert value(found, "vllm:inter_token_latency_seconds_sum") == pytest.approx(1.0)  # 0.5 s each of two
    assert value(found, "vllm:inter_token_latency_seconds_count") == 2
    assert value(found, "vllm:request_success_total", finished_reason="abort") == 1


def test_two_servers_in_one_process_do_not_meet() -> None:
    one, other = metrics(), metrics()
    one.prompt_tokens.inc(5)
    assert value(samples(other.render()[0].decode()), "vllm:prompt_tokens_total") == 0


def test_token_buckets() -> None:
    assert token_buckets(100) == (1, 2, 5, 10, 20, 50, 100)
    assert token_buckets(8192)[-1] == 5000


def refused(server: LiveServer) -> dict[str, float]:
    found = samples(httpx2.get(f"{server.url}/metrics", timeout=30, trust_env=False).text)
    return {labels["code"]: count for labels, count in found.get("longspan:requests_refused_total", [])}


def test_every_error_that_is_sent_counts_once_under_its_code() -> None:
    engine = FakeEngine()
    with (
        live_server(engine, max_body_mb=0.001) as server,
        httpx2.Client(base_url=server.url, timeout=30, trust_env=False) as http,
    ):
        assert http.post("/v1/completions", json={"prompt": "x" * 2000}).status_code == 413
        assert http.post("/v1/completions", json={"prompt": "x", "model": "nope"}).status_code == 404
        assert http.get("/nope").status_code == 404
        assert http.get("/v1/completions").status_code == 405
        assert http.post("/v1/completions", content=b"{").status_code == 400
        engine.fail_after = (2, ZeroDivisionError(), None)
        assert "internal_error" in http.post("/v1/completions", json={"prompt": "x", "stream": True}).text
        last = {"connection": "close"}  # uvicorn hangs up behind an error 500
        assert http.post("/v1/completions", json={"prompt": "x"}, headers=last).status_code == 500
        engine.die("worker 1 is gone")
        assert http.post("/v1/completions", json={"prompt": "x"}).status_code == 503
        assert refused(server) == {
            "request_too_large": 1, "model_not_found": 1, "unknown_url": 1, "method_not_allowed": 1, "invalid_json": 1,
            "internal_error": 2, "engine_dead": 1,
        }  # fmt: skip
