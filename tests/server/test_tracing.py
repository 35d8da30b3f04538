"""Traces of requests, as a receiver of OpenTelemetry's protocol gets them from the real engine and application."""

from __future__ import annotations

import asyncio
import multiprocessing
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from longspan.config import EngineConfig
from longspan.engine.assembly import start_engine
from longspan.engine.async_llm import AsyncLLM
from longspan.entrypoints.openai.app import create_app
from longspan.entrypoints.server_config import ServerConfig
from longspan.entrypoints.tracing import settings
from longspan.entrypoints.tracing.settings import check_tracing
from longspan.entrypoints.tracing.tracing import Tracing, TracingCollector
from longspan.errors import ConfigError
from longspan.metrics.ended_request import EndedRequest
from longspan.outputs import RequestTimes
from longspan.sampling_params import SamplingParams
from tests.models.tiny import write_tiny_model
from tests.server.fake_engine import MODEL
from tests.server.otlp_receiver import Receiver, receiver
from tests.server.test_server_metrics import samples

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "nobody-may-read-this"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_model(tmp_path_factory.mktemp("traced"), max_position_embeddings=512)
    (folder / "chat.jinja").write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    return folder


@pytest.fixture
def collected() -> Iterator[Receiver]:
    with receiver() as found:
        yield found


@asynccontextmanager
async def serving(
    folder: Path, collected: Receiver, max_waiting: int = 64
) -> AsyncIterator[tuple[AsyncLLM, httpx2.AsyncClient]]:
    """At its end all traces have been sent."""
    config = EngineConfig(
        model=str(folder), served_model_name=MODEL, instances=2, kv_tokens=200, executor="inproc", dtype="float32",
        threads_per_device=1, max_waiting=max_waiting, policy="elastic_fcfs", decode_headroom=1,
        chat_template=folder / "chat.jinja",
    )  # fmt: skip
    engine = await start_engine(config)
    app = create_app(engine, ServerConfig(otlp_traces_endpoint=collected.url))
    transport = httpx2.ASGITransport(app)
    try:
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=120) as http:
            yield engine, http
    finally:
        await engine.close()
        await asyncio.to_thread(app.state.context.close)


def attributes(span: Span) -> dict[str, Any]:
    """Values as they are: of one kind each."""
    found: dict[str, Any] = {}
    for attribute in span.attributes:
        value = attribute.value
        kind = value.WhichOneof("value")
        found[attribute.key] = (
            [each.string_value for each in value.array_value.values] if kind == "array_value" else getattr(value, kind)
        )
    return found


def by_name(spans: list[Span], parent: Span) -> dict[str, Span]:
    return {span.name: span for span in spans if span.parent_span_id == parent.span_id}


async def test_a_request_is_a_trace(folder: Path, collected: Receiver) -> None:
    async with serving(folder, collected) as (_, http):
        body = {"prompt": SECRET, "max_tokens": 5, "ignore_eos": True, "temperature": 0.5, "stop": [SECRET], "seed": 7}
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "a=b", "x-request-id": "mine"}
        answer = await http.post("/v1/completions", json=body, headers=headers)
        unsampled = {"traceparent": f"00-{TRACE}-{PARENT}-00", "x-request-id": "unseen"}
        await http.post("/v1/completions", json=body, headers=unsampled)
        chat = {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 3, "ignore_eos": True, "n": 2}
        for given in ("", "nonsense", "0" * 5000):
            chatted = await http.post("/v1/chat/completions", json=chat, headers={"traceparent": given})
            assert chatted.status_code == 200, chatted.text
    spans = collected.spans()
    roots = [span for span in spans if span.kind == Span.SPAN_KIND_SERVER]
    assert len(roots) == 1 + 3 * 2 and collected.services == {"longspan"}
    assert not any(SECRET.encode() in body for body in collected.bodies)
    (root,) = [span for span in roots if span.trace_id.hex() == TRACE]
    assert (root.name, root.parent_span_id.hex(), root.trace_state) == (f"text_completion {MODEL}", PARENT, "a=b")
    told = attributes(root)
    usage = answer.json()["usage"]
    assert told["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert (told["gen_ai.usage.output_tokens"], told["gen_ai.response.finish_reasons"]) == (5, ["length"])
    assert told["gen_ai.response.id"] == answer.json()["id"] and told["longspan.request_id"] == "mine"
    assert (told["gen_ai.operation.name"], told["gen_ai.request.model"]) == ("text_completion", MODEL)
    assert (told["gen_ai.request.temperature"], told["gen_ai.request.seed"]) == (0.5, 7)
    parts = by_name(spans, root)
    assert list(parts) == ["queue", "prefill", "decode"]
    edges = [root.start_time_unix_nano, parts["prefill"].start_time_unix_nano, parts["decode"].start_time_unix_nano]
    assert edges == [span.start_time_unix_nano for span in parts.values()]
    assert [*edges[1:], root.end_time_unix_nano] == [span.end_time_unix_nano for span in parts.values()]
    took_s = (root.end_time_unix_nano - root.start_time_unix_nano) / 1e9
    assert told["gen_ai.latency.e2e"] == pytest.approx(took_s, abs=1e-5)
    assert told["gen_ai.latency.time_to_first_token"] == pytest.approx((edges[2] - edges[0]) / 1e9, abs=1e-5)
    chats = [span for span in roots if span.name == f"chat {MODEL}"]
    assert len(chats) == 6 and not any(span.parent_span_id for span in chats)
    assert len({span.trace_id for span in chats}) == 6


async def test_preemptions_are_events_and_every_end_is_told(folder: Path, collected: Receiver) -> None:
    async with serving(folder, collected, max_waiting=1) as (engine, http):
        whole = {"max_tokens": 100, "ignore_eos": True}
        grown = await asyncio.gather(
            *[http.post("/v1/completions", json={"prompt": [7 + n] * 150, **whole}) for n in range(2)]
        )
        assert [answer.status_code for answer in grown] == [200, 200]
        await engine.idle()  # or a step that was queued behind their last still has their slots
        crowd = await asyncio.gather(
            *[http.post("/v1/completions", json={"prompt": [5] * 350, **whole, "max_tokens": 40}) for _ in range(4)]
        )
        assert sorted(answer.status_code for answer in crowd) == [200, 200, 429, 429]
        stream = engine.generate([5] * 30, SamplingParams(max_tokens=300, ignore_eos=True), "cmpl-x-0123abcd-0")
        await anext(stream)
        await stream.aclose()
        await engine.idle()
        found = samples((await http.get("/metrics")).text)
    spans = collected.spans()
    roots = [span for span in spans if span.kind == Span.SPAN_KIND_SERVER]
    reasons = [attributes(root).get("gen_ai.response.finish_reasons") for root in roots]
    assert sorted(map(str, reasons)) == sorted(map(str, [["length"]] * 4 + [["abort"]] + [None] * 2))
    refused = [root for root in roots if root.status.code == 2]
    assert [attributes(root)["error.type"] for root in refused] == ["QueueFullError"] * 2
    assert all(list(by_name(spans, root)) == ["queue"] for root in refused)
    events = [event.name for span in spans for event in span.events]
    preempted = found["vllm:num_preemptions_total"][0][1]
    assert events.count("preemption") == preempted > 0
    for way in ("up", "down", "across"):
        (times,) = [n for labels, n in found["longspan:scalings_total"] if labels["direction"] == way]
        assert events.count(f"scale {way}") == times
    assert sum(attributes(root)["longspan.num_preemptions"] for root in roots) == preempted
    for span in spans:
        for event in span.events:
            assert span.start_time_unix_nano <= event.time_unix_nano <= span.end_time_unix_nano


def ended(number: int, **trace: str) -> EndedRequest:
    times = RequestTimes(1.0, scheduled=2.0, first_token=3.0, last_token=4.0, finished=4.0)
    params = SamplingParams(max_tokens=5)
    return EndedRequest(f"cmpl-{number}-0123abcd-0", params, times, 10, 0, 5, 0, (), "length", None, trace or None)


def test_whoever_hands_over_never_waits_and_what_is_dropped_is_counted(collected: Receiver) -> None:
    collected.opened.clear()
    tracing = Tracing(collected.url, MODEL, most_waiting=10)
    for _ in range(10):
        tracing.take(ended(0))
    assert collected.came.wait(30)
    for number in range(500):  # nobody answers meanwhile
        tracing.take(ended(number))
    assert tracing.dropped >= 490
    collected.opened.set()
    tracing.close()
    assert tracing.sent + tracing.dropped == 510
    assert len(collected.spans()) == 4 * tracing.sent


def test_a_receiver_that_refuses_is_counted(collected: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    collected.status = 400
    tracing = Tracing(collected.url, MODEL)
    tracing.take(ended(0))
    tracing.close()
    assert (tracing.sent, tracing.dropped) == (0, 1)
    (told,) = TracingCollector(tracing, (MODEL, "0")).collect()
    assert [(each.labels["outcome"], each.value) for each in told.samples] == [("sent", 0), ("dropped", 1)]
    assert all((each.labels["model_name"], each.labels["engine"]) == (MODEL, "0") for each in told.samples)
    assert "the traces of 1 requests are lost" in caplog.text and "400" in caplog.text


def test_the_process_that_sends_them_may_die(collected: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    tracing = Tracing(collected.url, MODEL)
    tracing.take(ended(0))
    while not tracing.sent:
        time.sleep(0.01)
    (process,) = [child for child in multiprocessing.active_children() if child.name == "traces"]
    process.kill()
    process.join()
    tracing.take(ended(1))
    while not tracing.dropped:
        time.sleep(0.01)
    assert "another is started" in caplog.text
    tracing.take(ended(2))
    tracing.close()
    assert (tracing.sent, tracing.dropped) == (2, 1)
    assert not [child for child in multiprocessing.active_children() if child.name == "traces"]


@pytest.mark.parametrize("endpoint", ["localhost:4318", "http://", "ftp://a/b", "http://[", "http://a:0/"])
def test_an_endpoint_that_cannot_be_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="must be a URL"):
        check_tracing(ServerConfig(otlp_traces_endpoint=endpoint))


def test_without_opentelemetry_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "_NEEDED", ("no_such_package.sdk",))
    with pytest.raises(ConfigError, match="pip install opentelemetry-sdk"):
        check_tracing(ServerConfig(otlp_traces_endpoint="http://localhost:4318/v1/traces"))
    check_tracing(ServerConfig())


def test_nothing_of_it_is_loaded_unless_it_is_asked_for() -> None:
    program = (
        "import sys, longspan.entrypoints.serve\n"
        "found = [name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))]\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
