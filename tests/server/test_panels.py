"""Every panel of the dashboard that comes with vLLM, and the gauges that routers read, under a known load.

It has refusals, an abort, and requests that outgrow the pool.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from longspan.config import EngineConfig
from longspan.core.actions import StopRequest
from longspan.core.events import RequestArrived
from longspan.engine.assembly import start_engine
from longspan.engine.async_llm import AsyncLLM
from longspan.entrypoints.openai.app import create_app
from longspan.metrics.event_log import read_event_log
from longspan.sampling_params import SamplingParams
from tests.metrics.test_elasticity import Told, told
from tests.models.tiny import write_tiny_model
from tests.server.fake_engine import MODEL
from tests.server.test_server_metrics import OURS, Samples, samples, value

KV_TOKENS = 400
PANELS = {
    "E2E Request Latency": ["e2e_request_latency_seconds_bucket", "e2e_request_latency_seconds_sum",
                            "e2e_request_latency_seconds_count"],
    "Token Throughput": ["prompt_tokens_total", "generation_tokens_total"],
    "Inter Token Latency": ["inter_token_latency_seconds_bucket", "inter_token_latency_seconds_sum",
                            "inter_token_latency_seconds_count"],
    "Scheduler State": ["num_requests_running", "num_requests_waiting"],
    "Time To First Token Latency": ["time_to_first_token_seconds_bucket", "time_to_first_token_seconds_sum",
                                    "time_to_first_token_seconds_count"],
    "Cache Utilization": ["kv_cache_usage_perc"],
    "Request Prompt Length": ["request_prompt_tokens_bucket"],
    "Request Generation Length": ["request_generation_tokens_bucket"],
    "Finish Reason": ["request_success_total"],
    "Queue Time": ["request_queue_time_seconds_sum"],
    "Requests Prefill and Decode Time": ["request_decode_time_seconds_sum", "request_prefill_time_seconds_sum"],
    "Max Generation Token in Sequence Group": ["request_max_num_generation_tokens_sum"],
}  # fmt: skip
"""The series that each asks for, all of them with the label `model_name`."""
ROUTED_BY = ("num_requests_waiting", "num_requests_running", "kv_cache_usage_perc", "cache_config_info",
             "lora_requests_info")  # fmt: skip
WHOLE = {"ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("panels"), max_position_embeddings=512)


@pytest.fixture
async def served(folder: Path, tmp_path: Path) -> AsyncIterator[tuple[AsyncLLM, httpx2.AsyncClient]]:
    """Two instances, whose slots are soon taken, behind the real application."""
    config = EngineConfig(
        model=str(folder), served_model_name=MODEL, instances=2, kv_tokens=KV_TOKENS // 2, executor="inproc",
        dtype="float32", threads_per_device=1, max_waiting=2, policy="elastic_fcfs", decode_headroom=1,
        event_log=tmp_path / "log.jsonl",
    )  # fmt: skip
    engine = await start_engine(config)
    app = create_app(engine)
    try:
        async with httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app), base_url="http://127.0.0.1", timeout=120
        ) as http:
            yield engine, http
    finally:
        await engine.close()
        app.state.context.close()


async def test_panels_and_gauges(served: tuple[AsyncLLM, httpx2.AsyncClient], tmp_path: Path) -> None:
    engine, http = served
    short = await asyncio.gather(*[ask(http, [5] * 40, 4), ask(http, [6] * 60, 8)])  # both fit
    outgrowing = [asyncio.create_task(ask(http, [7 + number] * 150, 100)) for number in range(2)]
    seen = await watched(engine, http, outgrowing)
    long = [await task for task in outgrowing]
    answers = [*short, *long]
    leaves = engine.generate([5] * 30, SamplingParams(max_tokens=300, ignore_eos=True), "leaves")
    await anext(leaves)
    await leaves.aclose()  # its abort is the engine's; that of a client is another test's
    assert (await http.post("/v1/completions", json={"prompt": [5] * 600})).status_code == 400
    await engine.idle()
    late = await asyncio.gather(*[ask(http, [5] * 350, 40) for _ in range(6)])  # one runs, two wait
    assert [answer.status_code for answer in late].count(429) == 3
    answers += [answer for answer in late if answer.status_code == 200]
    await engine.idle()

    found = samples((await http.get("/metrics")).text)
    for panel, series in PANELS.items():
        for name in series:
            assert found.get(f"vllm:{name}"), (panel, name)
            assert all(labels.items() >= OURS.items() for labels, _ in found[f"vllm:{name}"]), (panel, name)
    usages = [answer.json()["usage"] for answer in answers]
    prompts, outputs = ([usage[f"{what}_tokens"] for usage in usages] for what in ("prompt", "completion"))
    assert outputs == [4, 8, 100, 100, 40, 40, 40]
    assert value(found, "vllm:prompt_tokens_total") == sum(prompts)
    assert value(found, "vllm:generation_tokens_total") == sum(outputs)
    assert value(found, "vllm:inter_token_latency_seconds_count") == sum(outputs) - len(outputs)
    for name in ("e2e_request_latency", "time_to_first_token", "request_queue_time", "request_prefill_time",
                 "request_decode_time"):  # fmt: skip
        assert value(found, f"vllm:{name}_seconds_count") == len(answers), name
        assert value(found, f"vllm:{name}_seconds_bucket", le="+Inf") == len(answers), name
    parts = [value(found, f"vllm:{name}_seconds_sum") for name in ("request_queue_time", "request_prefill_time",
                                                                   "request_decode_time")]  # fmt: skip
    assert sum(parts) == pytest.approx(value(found, "vllm:e2e_request_latency_seconds_sum"), abs=0.01)
    assert sum(parts[:2]) == pytest.approx(value(found, "vllm:time_to_first_token_seconds_sum"), abs=0.01)
    assert at_most(found, "request_prompt_tokens", 50) == len([tokens for tokens in prompts if tokens <= 50])
    assert at_most(found, "request_generation_tokens", 50) == len([tokens for tokens in outputs if tokens <= 50])
    assert value(found, "vllm:request_max_num_generation_tokens_sum") == sum(outputs)
    ended = {labels["finished_reason"]: count for labels, count in found["vllm:request_success_total"]}
    assert ended == {"stop": 0, "length": len(answers), "abort": 0, "error": 0}
    assert value(found, "vllm:admission_rejections_total", reason="rate_limit_exceeded") == 3
    refusals = {labels["code"]: count for labels, count in found["longspan:requests_refused_total"]}
    assert refusals == {"context_length_exceeded": 1, "rate_limit_exceeded": 3}

    of_log = told_by_log(tmp_path / "log.jsonl")
    assert of_log.preemptions > 0, "the load does not outgrow the pool"
    assert value(found, "vllm:num_preemptions_total") == of_log.preemptions
    assert value(found, "vllm:request_num_preemptions_sum") == of_log.preemptions
    assert value(found, "longspan:recomputed_tokens_total") == of_log.recomputed > 0
    for way in ("up", "down", "across"):
        assert value(found, "longspan:scalings_total", direction=way) == of_log.scalings.count(way)
    assert of_log.scalings
    assert value(found, "longspan:prefill_pauses_total") == len(of_log.pauses)
    assert value(found, "longspan:lost_tokens_total") == 0

    routed = {name: found[f"vllm:{name}"] for name in ROUTED_BY}
    assert all(len(series) == 1 for series in routed.values())
    assert value(found, "vllm:cache_config_info", block_size="1", num_gpu_blocks=str(KV_TOKENS)) == 1
    assert [routed[name][0][1] for name in ROUTED_BY[:3]] == [0, 0, 0]
    assert {sample["running"] for sample in seen} >= {1}, "it was never seen at work"
    assert max(sample["used"] for sample in seen) > 0.5


async def ask(http: httpx2.AsyncClient, prompt: list[int], tokens: int) -> httpx2.Response:
    return await http.post("/v1/completions", json={"prompt": prompt, "max_tokens": tokens, **WHOLE})


async def watched(
    engine: AsyncLLM, http: httpx2.AsyncClient, tasks: list[asyncio.Task[httpx2.Response]]
) -> list[dict[str, float]]:
    """The routers' gauges until the tasks are done, each time what the engine says at that moment."""
    seen = []
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)  # a scrape by itself lets nobody else have a turn
        found = samples((await http.get("/metrics")).text)
        running, waiting = (value(found, f"vllm:num_requests_{what}") for what in ("running", "waiting"))
        used = value(found, "vllm:kv_cache_usage_perc")
        held = [count for _, count in found["longspan:instance_kv_tokens_used"]]
        assert running + waiting <= len(tasks) and used == pytest.approx(sum(held) / KV_TOKENS)
        assert value(found, "vllm:num_requests_waiting_by_reason", reason="capacity") == waiting
        seen.append({"running": running, "waiting": waiting, "used": used})
    return seen


def at_most(found: Samples, name: str, bound: float) -> float:
    return value(found, f"vllm:{name}_bucket", le=str(float(bound)))


def told_by_log(path: Path) -> Told:
    """Of the load alone: what was measured at the start is not logged."""
    records = list(read_event_log(path))
    assert isinstance(records[0].event, RequestArrived)
    assert any(isinstance(action, StopRequest) for record in records for action in record.actions)
    return told((record.now, record.event, record.actions) for record in records)


async def test_workers_tell_of_themselves(served: tuple[AsyncLLM, httpx2.AsyncClient]) -> None:
    engine, http = served
    before = samples((await http.get("/metrics")).text)
    whose = [(labels["instance"], labels["worker"]) for labels, _ in before["longspan:worker_cpu_seconds_total"]]
    assert whose == [("0", "0"), ("1", "1")]
    stream = engine.generate([5] * 150, SamplingParams(max_tokens=50, ignore_eos=True), "r")
    await anext(stream)
    busy = samples((await http.get("/metrics")).text)
    slots, cpu, resident = (
        sum(amount for _, amount in busy[f"longspan:worker_{name}"])
        for name in ("kv_slots_used", "cpu_seconds_total", "resident_memory_bytes")
    )
    assert slots >= 150 and resident > 1 << 20
    assert cpu > sum(amount for _, amount in before["longspan:worker_cpu_seconds_total"])
    for labels, seconds in busy["longspan:worker_busy_seconds_total"]:
        assert seconds > 0, labels
    assert value(busy, "longspan:groups_running") == 1
    await stream.aclose()
    await engine.idle()
