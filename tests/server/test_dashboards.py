"""What vLLM's dashboards and our own read, with the values that a known load must give."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.openmetrics import parser as openmetrics

from longspan.config import EngineConfig
from longspan.engine.assembly import start_engine
from longspan.entrypoints.openai.app import create_app
from longspan.errors import OverloadedError
from longspan.metrics.iterations import Histogram
from longspan.metrics.prometheus import ServerMetrics
from longspan.outputs import Quote, RequestOutput, RequestTimes
from longspan.sampling_params import SamplingParams
from tests.models.tiny import write_tiny_model
from tests.server.fake_engine import MODEL, FakeEngine
from tests.server.live_server import live_server
from tests.server.raw_http import connection
from tests.server.test_server_metrics import OURS, Samples, metrics, samples, value

GAUGES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
HISTOGRAMS = (
    "time_to_first_token_seconds", "inter_token_latency_seconds", "request_time_per_output_token_seconds",
    "e2e_request_latency_seconds", "request_queue_time_seconds", "request_prefill_time_seconds",
    "request_decode_time_seconds", "request_inference_time_seconds", "request_prompt_tokens",
    "request_generation_tokens", "request_max_num_generation_tokens", "request_params_n", "request_params_max_tokens",
    "iteration_tokens_total", "request_num_preemptions", "request_prefill_kv_computed_tokens",
)  # fmt: skip
LABELLED = {
    "num_requests_waiting_by_reason": {"reason": "capacity"}, "engine_sleep_state": {"sleep_state": "awake"},
    "prompt_tokens_by_source_total": {"source": "local_compute"}, "request_success_total": {"finished_reason": "stop"},
    "admission_rejections_total": {"reason": "overloaded"},
}  # fmt: skip
COUNTERS = (
    "prompt_tokens", "generation_tokens", "num_preemptions", "prefix_cache_queries", "prefix_cache_hits",
    "prompt_tokens_cached",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("dashboards"), max_position_embeddings=512)


@pytest.fixture
async def served(folder: Path) -> AsyncIterator[httpx2.AsyncClient]:
    """The real engine, two instances, behind the real application."""
    config = EngineConfig(
        model=str(folder), served_model_name=MODEL, instances=2, kv_tokens=2000, executor="inproc", dtype="float32",
        threads_per_device=1, max_waiting=8,
    )  # fmt: skip
    engine = await start_engine(config)
    app = create_app(engine)
    try:
        async with httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app), base_url="http://127.0.0.1", timeout=120
        ) as http:
            yield http
    finally:
        await engine.close()
        app.state.context.close()


async def test_a_known_load_with_an_abort_and_refusals(served: httpx2.AsyncClient) -> None:
    engine = served._transport.app.state.context.engine  # type: ignore[attr-defined]
    whole = {"max_tokens": 4, "ignore_eos": True, "cache": False}  # what is found is not computed
    for prompt, more in (([5] * 200, {"n": 2}), ([6] * 100, {}), ([7] * 50, {"stream": True})):
        assert (await served.post("/v1/completions", json={"prompt": prompt, **whole, **more})).status_code == 200
    await engine.idle()
    before = samples((await served.get("/metrics")).text)
    assert value(before, "vllm:iteration_tokens_total_sum") == 550 + 4 * 3  # a prompt gives the first token
    assert value(before, "longspan:prefill_chunk_tokens_sum") == 550
    batches = engine.stats().num_batches
    for name in ("iteration_parallelism", "iteration_seconds", "iteration_prediction_ratio"):
        assert counts(before, f"longspan:{name}_count") == batches
    assert value(before, "vllm:iteration_tokens_total_count") == batches
    seconds = sum(amount for _, amount in before["longspan:iteration_seconds_sum"])
    assert seconds == pytest.approx(engine.stats().model_seconds)
    assert sum(amount for _, amount in before["longspan:iteration_parallelism_sum"]) >= batches

    stream = engine.generate([5] * 100, SamplingParams(max_tokens=300, ignore_eos=True), "leaves")
    await anext(stream)
    await stream.aclose()
    assert (await served.post("/v1/completions", json={"prompt": [5] * 600})).status_code == 400
    crowd = {"prompt": [[5] * 100], "n": 9}
    assert (await served.post("/v1/completions", json=crowd)).status_code == 400
    await engine.idle()

    found = samples((await served.get("/metrics")).text)
    for name in GAUGES:
        assert value(found, f"vllm:{name}") == 0
    for name, labels in LABELLED.items():
        assert value(found, f"vllm:{name}", **labels) >= 0
    for name in COUNTERS:
        assert value(found, f"vllm:{name}_total") >= 0
    for name in HISTOGRAMS:
        assert value(found, f"vllm:{name}_count") > 0
    assert value(found, "vllm:prompt_tokens_total") == 550
    assert value(found, "vllm:prompt_tokens_by_source_total", source="local_compute") == 550
    assert value(found, "vllm:generation_tokens_total") == 16
    assert value(found, "vllm:request_success_total", finished_reason="length") == 4
    for name in ("request_prefill_time_seconds", "request_decode_time_seconds", "request_inference_time_seconds",
                 "request_time_per_output_token_seconds", "request_num_preemptions"):  # fmt: skip
        assert value(found, f"vllm:{name}_count") == 4
    assert value(found, "vllm:request_prefill_kv_computed_tokens_sum") == 550
    assert value(found, "vllm:request_params_max_tokens_sum") == 16
    assert value(found, "vllm:request_params_n_sum") == 4 and value(found, "vllm:request_params_n_count") == 3
    assert value(found, "vllm:request_max_num_generation_tokens_sum") == 12
    for name in ("promises", "quotes"):
        assert counts(found, f"longspan:{name}_total") == 4
    assert value(found, "longspan:quote_ratio_count") == 4
    goals = [(labels["goal"], labels["prompt"], count) for labels, count in found["longspan:goals_total"]]
    assert sum(count for goal, size, count in goals if goal == "ttft" and size == "short") == 4
    assert sum(count for goal, size, count in goals if goal == "tpot" and size == "short") == 4
    assert value(found, "longspan:instance_kv_tokens_used", instance="1") == 0
    assert value(found, "longspan:instance_kv_tokens_cached", instance="1") == 0
    http = {(tags["handler"], tags["method"], tags["status"]): n for tags, n in found["http_requests_total"]}
    assert http["/v1/completions", "POST", "200"] == 3 and http["/v1/completions", "POST", "400"] == 2
    assert http["/metrics", "GET", "200"] == 1


def counts(found: Samples, name: str) -> float:
    return sum(count for _, count in found[name])


def output(tokens: Sequence[int], times: RequestTimes, **more: Any) -> RequestOutput:
    return RequestOutput("r", 1000, sum(tokens), token_ids=(1,) * tokens[-1], times=times, **more)


QUOTE = Quote(median_s=2.0, quote_s=4.0, promised_s=6.0, deadline_s=3.0, tpot_s=0.5)


@pytest.mark.parametrize(("ttft_s", "tpot_s", "kept"), [
    (1.0, 0.25, {"promises": True, "quotes": True, "ttft": True, "tpot": True}),
    (3.5, 0.25, {"promises": True, "quotes": True, "ttft": False, "tpot": True}),
    (5.0, 1.0, {"promises": True, "quotes": False, "ttft": False, "tpot": False}),
    (7.0, 1.0, {"promises": False, "quotes": False, "ttft": False, "tpot": False}),
])  # fmt: skip
def test_what_was_said_is_judged(ttft_s: float, tpot_s: float, kept: dict[str, bool]) -> None:
    measured = metrics()
    arrival = measured.arrive()
    request = arrival.request(max_tokens=7)
    times = RequestTimes(10.0, scheduled=10.5, first_token=10.0 + ttft_s, last_token=10.0 + ttft_s)
    request.observe(output([1], times, quote=QUOTE, num_cached_tokens=400))
    end = 10.0 + ttft_s + 4 * tpot_s
    times = replace(times, last_token=end, finished=end)
    request.observe(
        output([1, 4], times, quote=QUOTE, num_cached_tokens=400, num_preemptions=2, finish_reason="length")
    )
    found = samples(measured.render()[0].decode())
    for name in ("promises", "quotes"):
        assert found[f"longspan:{name}_total"] == [(OURS | {"kept": word(kept[name])}, 1)]
    for goal in ("ttft", "tpot"):
        assert value(found, "longspan:goals_total", goal=goal, prompt="short", met=word(kept[goal])) == 1
    assert len(found["longspan:goals_total"]) == 2
    assert value(found, "longspan:quote_ratio_sum") == pytest.approx(ttft_s / 2.0)
    for name, expected in {
        "prefill_time_seconds": ttft_s - 0.5, "decode_time_seconds": 4 * tpot_s, "num_preemptions": 2,
        "inference_time_seconds": ttft_s - 0.5 + 4 * tpot_s, "time_per_output_token_seconds": tpot_s,
        "max_num_generation_tokens": 5, "params_n": 1, "params_max_tokens": 7, "prefill_kv_computed_tokens": 600,
    }.items():  # fmt: skip
        assert value(found, f"vllm:request_{name}_sum") == pytest.approx(expected), name
        assert value(found, f"vllm:request_{name}_count") == 1
    assert value(found, "vllm:prompt_tokens_by_source_total", source="local_cache_hit") == 400
    assert value(found, "vllm:prompt_tokens_by_source_total", source="local_compute") == 600


def word(yes: bool) -> str:
    return str(yes).lower()


def test_choices_of_a_prompt_count_together_once_all_have_ended() -> None:
    measured = metrics()
    arrival = measured.arrive()
    siblings = arrival.siblings(2)
    for tokens, prompts in ((3, 0), (2, 1)):
        request = arrival.request(siblings, 9)
        times = RequestTimes(1.0, scheduled=1.0, first_token=2.0, last_token=2.0, finished=2.0)
        request.observe(output([tokens], times, finish_reason="stop"))
        found = samples(measured.render()[0].decode())
        assert value(found, "vllm:request_params_n_count") == prompts
    assert value(found, "vllm:request_params_n_sum") == 2
    assert value(found, "vllm:request_max_num_generation_tokens_sum") == 3


def test_who_is_ended_from_outside_has_no_times() -> None:
    measured = metrics()
    arrival = measured.arrive()
    request = arrival.request()
    request.observe(output([0], RequestTimes(1.0, finished=3.0), finish_reason="abort"))
    found = samples(measured.render()[0].decode())
    assert value(found, "vllm:request_success_total", finished_reason="abort") == 1
    assert value(found, "vllm:request_inference_time_seconds_count") == 0


def test_buckets_count_what_they_hold() -> None:
    histogram = Histogram((1.0, 2.0))
    for number in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(number)
    assert histogram.buckets() == [("1.0", 2.0), ("2.0", 3.0), ("+Inf", 4.0)]
    assert histogram.total == 12.0


def test_answers_are_counted_by_path_and_status() -> None:
    engine = FakeEngine()
    with (
        live_server(engine) as server,
        httpx2.Client(base_url=server.url, timeout=30, trust_env=False) as http,
    ):
        http.post("/v1/completions", json={"prompt": "abc", "stream": True})
        http.post("/v1/chat/completions", json={"messages": []})
        engine.refuse = OverloadedError("late", retry_after_s=3)
        http.post("/v1/completions", json={"prompt": "abc"})
        http.get("/nothing/here")
        with connection(server) as raw:
            raw.sendall(b"what is this\r\n\r\n")
            assert b" 400 " in raw.recv(1000)
        found = samples(http.get("/metrics").text)
    told = {(tags["handler"], tags["method"], tags["status"]): n for tags, n in found["http_requests_total"]}
    assert told == {
        ("/v1/completions", "POST", "200"): 1, ("/v1/chat/completions", "POST", "400"): 1,
        ("/v1/completions", "POST", "429"): 1, ("none", "GET", "404"): 1, ("none", "other", "400"): 1,
    }  # fmt: skip
    seconds = {(tags["handler"], tags["method"]): n for tags, n in found["http_request_duration_seconds_count"]}
    assert seconds["/v1/completions", "POST"] == 2
    assert value(found, "vllm:admission_rejections_total", reason="overloaded") == 1


def test_openmetrics_for_whoever_accepts_it(http: httpx2.Client) -> None:
    text = http.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert text.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert text.text.endswith("# EOF\n")
    families = {family.name for family in openmetrics.text_string_to_metric_families(text.text)}
    assert len(families) > 40
    plain = http.get("/metrics")
    assert plain.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


def test_a_page_that_nobody_reads_costs_nothing_to_keep() -> None:
    """Labels come from our own tables: whatever clients send, there are no more series."""
    measured = ServerMetrics(model_name="m", max_model_len=100, stats=FakeEngine().stats)
    for number in range(1000):
        measured.http.answered("none", f"METHOD{number}", 404, 0.1)
    text = measured.render()[0].decode()
    assert text.count("http_requests_total{") == 1
