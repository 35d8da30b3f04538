"""Metrics in Prometheus' text format, under vLLM's names: its dashboards and routers read ours unchanged.

Histograms and token counters are fed by what each request gives back; gauges are read when scraped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from longspan.core.events import FinishReason
from longspan.outputs import EngineStats, RequestOutput

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
ENGINE = "0"
LABELS = ("model_name", "engine")

Ending = FinishReason | Literal["error"]

# vLLM's own bounds, so that panels written for them line up.
TTFT_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
ITL_BUCKETS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
LATENCY_BUCKETS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
)  # fmt: skip


class ServerMetrics:
    """All metrics of one server, in a registry of its own."""

    def __init__(
        self,
        *,
        model_name: str,
        max_model_len: int,
        stats: Callable[[], EngineStats],
        error: Callable[[], str | None] = lambda: None,
    ) -> None:
        """Take what to count.

        error: why the engine is dead, if it is: then nothing runs or waits, whatever the stats say.
        """
        self.registry = CollectorRegistry()
        labels = self._labels = (model_name, ENGINE)

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, LABELS, registry=self.registry).labels(*labels)

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(name, text, LABELS, registry=self.registry, buckets=buckets).labels(*labels)

        self.prompt_tokens = counter("vllm:prompt_tokens", "Prompt tokens prefilled.")
        self.generation_tokens = counter("vllm:generation_tokens", "Tokens generated.")
        success = Counter(
            "vllm:request_success",
            "Requests that ended.",
            (*LABELS, "finished_reason"),
            registry=self.registry,
        )
        self.request_success: dict[Ending, Counter] = {
            reason: success.labels(*labels, reason) for reason in (*get_args(FinishReason), "error")
        }
        self.requests_refused = Counter(
            "longspan:requests_refused",
            "Requests answered with an error, by the error's code.",
            (*LABELS, "code"),
            registry=self.registry,
        )
        self.ttft = histogram("vllm:time_to_first_token_seconds", "Arrival to first token.", TTFT_BUCKETS)
        self.itl = histogram("vllm:inter_token_latency_seconds", "Token to next token.", ITL_BUCKETS)
        self.e2e = histogram("vllm:e2e_request_latency_seconds", "Arrival to last token.", LATENCY_BUCKETS)
        self.queue = histogram(
            "vllm:request_queue_time_seconds", "Arrival to first scheduled.", LATENCY_BUCKETS
        )
        sizes = token_buckets(max_model_len)
        self.request_prompt_tokens = histogram(
            "vllm:request_prompt_tokens", "Prompt tokens a request.", sizes
        )
        self.request_generation_tokens = histogram(
            "vllm:request_generation_tokens", "Generated tokens a request.", sizes
        )
        self.registry.register(_EngineCollector(labels, stats, error))

    def arrive(self) -> Arrival:
        """Count one call of a client that asks for text."""
        return Arrival(self)

    def refuse(self, code: str) -> None:
        """Count one error that is sent. `code` comes from our own table of errors, never from a client: each is a
        time series for good."""
        self.requests_refused.labels(*self._labels, code).inc()

    def render(self) -> bytes:
        return generate_latest(self.registry)


class Arrival:
    """A client's call, from its arrival to its one end: a request for each choice, or a refusal, or a client that left.

    What sends an error counts it by `ServerMetrics.refuse`; here it only means that nothing else is counted.
    """

    def __init__(self, metrics: ServerMetrics) -> None:
        self._metrics = metrics
        self._requests: list[RequestMetrics] = []
        self._ended = False

    def request(self) -> RequestMetrics:
        """Return metrics of one choice, once all are known to be servable: show it every output."""
        request = RequestMetrics(self._metrics)
        self._requests.append(request)
        return request

    def end(self, reason: Ending | None) -> None:
        """End for this reason what has not ended by itself; None: it was refused. Only the first end counts."""
        if self._ended:
            return
        self._ended = True
        if reason == "abort" and not self._requests:
            self._metrics.request_success["abort"].inc()
        for request in self._requests:
            request.end(reason)


class RequestMetrics:
    """Turns the outputs of one request into observations, and its end into one count."""

    def __init__(self, metrics: ServerMetrics) -> None:
        self._metrics = metrics
        self._previous_token: float | None = None
        self._started = False
        self._ended = False

    def observe(self, output: RequestOutput) -> None:
        metrics, times = self._metrics, output.times
        if output.token_ids:
            metrics.generation_tokens.inc(len(output.token_ids))
            self._observe_tokens(output)
        if output.finish_reason is not None and not self._ended:
            self._ended = True
            metrics.request_success[output.finish_reason].inc()
            metrics.request_prompt_tokens.observe(output.num_prompt_tokens)
            metrics.request_generation_tokens.observe(output.num_output_tokens)
            if times.finished is not None:
                metrics.e2e.observe(times.finished - times.arrived)

    def end(self, reason: Ending | None) -> None:
        """End it, unless it has ended. One that was refused is not counted; but one that had begun then, with more of
        its call, was aborted."""
        if self._ended:
            return
        self._ended = True
        if reason is None and self._started:
            reason = "abort"
        if reason is not None:
            self._metrics.request_success[reason].inc()

    def _observe_tokens(self, output: RequestOutput) -> None:
        metrics, times = self._metrics, output.times
        gaps = len(output.token_ids)
        if not self._started:
            self._started = True
            gaps -= 1
            metrics.prompt_tokens.inc(output.num_prompt_tokens)
            self._previous_token = times.first_token
            if times.first_token is not None:
                metrics.ttft.observe(times.first_token - times.arrived)
            if times.scheduled is not None:
                metrics.queue.observe(times.scheduled - times.arrived)
        if times.last_token is None or self._previous_token is None:
            return
        for _ in range(gaps):  # an output that carries several tokens shares its time evenly among them
            metrics.itl.observe((times.last_token - self._previous_token) / gaps)
        self._previous_token = times.last_token


class _EngineCollector(Collector):
    """Asks the engine at each scrape, so that no gauge is ever stale."""

    def __init__(
        self, labels: tuple[str, str], stats: Callable[[], EngineStats], error: Callable[[], str | None]
    ) -> None:
        self._labels = labels
        self._stats = stats
        self._error = error

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        stats, alive = self._stats(), self._error() is None
        total = max(1, stats.kv_tokens_total)
        yield self._gauge("num_requests_running", "Requests in a batch.", stats.num_running)
        yield self._gauge("num_requests_waiting", "Requests that wait.", stats.num_waiting)
        yield self._gauge("kv_cache_usage_perc", "KV slots in use; 1 is all.", stats.kv_tokens_used / total)
        up = GaugeMetricFamily("longspan:engine_up", "1 while the engine lives, 0 once it is dead.", labels=LABELS)
        up.add_metric(self._labels, float(alive))
        yield up
        info = {"block_size": "1", "num_gpu_blocks": str(stats.kv_tokens_total)}
        yield self._gauge("cache_config_info", "The KV pool: a block is one token.", 1, info)
        no_lora = {"max_lora": "0", "running_lora_adapters": "", "waiting_lora_adapters": ""}
        yield self._gauge("lora_requests_info", "No adapters here.", 0, no_lora)
        for name, text, count in (
            ("vllm:num_preemptions", "Requests paused for others.", stats.num_preemptions),
            ("longspan:num_migrations", "Times that KV moved between instances.", stats.num_migrations),
            ("longspan:non_finite_logits", "Requests ended since the model's logits were not finite.",
             stats.num_bad_logits),
            ("longspan:event_log_errors", "Errors that ended the event log.", stats.event_log_errors),
        ):  # fmt: skip
            counter = CounterMetricFamily(name, text, labels=LABELS)
            counter.add_metric(self._labels, count)
            yield counter
        by_instance = GaugeMetricFamily(
            "longspan:instance_kv_tokens_used", "KV slots in use.", labels=(*LABELS, "instance")
        )
        for instance, used in enumerate(stats.kv_tokens_used_by_instance):
            by_instance.add_metric((*self._labels, str(instance)), used)
        yield by_instance

    def _gauge(self, name: str, text: str, value: float, extra: dict[str, str] | None = None) -> Metric:
        extra = extra or {}
        gauge = GaugeMetricFamily(f"vllm:{name}", text, labels=(*LABELS, *extra))
        gauge.add_metric((*self._labels, *extra.values()), value)
        return gauge


def token_buckets(largest: int) -> tuple[float, ...]:
    """Return 1, 2, 5, 10, 20, 50 ... up to `largest`."""
    steps = [float(digit * 10**power) for power in range(len(str(largest))) for digit in (1, 2, 5)]
    return tuple(step for step in steps if step <= largest)
