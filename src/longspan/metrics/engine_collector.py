"""What the engine itself knows, as metrics: asked for when they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from longspan.metrics.elasticity import Elasticity
from longspan.metrics.iterations import Histogram, Iterations
from longspan.outputs import EngineStats
from longspan.worker_usage import WorkerUsage

LABELS = ("model_name", "engine")


class EngineCollector(Collector):
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
        text = "Instances that are lost, and not there again."
        missing = GaugeMetricFamily("longspan:instances_missing", text, labels=LABELS)
        missing.add_metric(self._labels, stats.num_missing)
        yield missing
        info = {"block_size": "1", "num_gpu_blocks": str(stats.kv_tokens_total)}
        yield self._gauge("cache_config_info", "The KV pool: a block is one token.", 1, info)
        no_lora = {"max_lora": "0", "running_lora_adapters": "", "waiting_lora_adapters": ""}
        yield self._gauge("lora_requests_info", "No adapters here.", 0, no_lora)
        by_reason = GaugeMetricFamily(
            "vllm:num_requests_waiting_by_reason", "Requests that wait: all of them for their turn.",
            labels=(*LABELS, "reason"),
        )  # fmt: skip
        for reason, waiting in (("capacity", stats.num_waiting), ("deferred", 0)):
            by_reason.add_metric((*self._labels, reason), waiting)
        yield by_reason
        sleeps = GaugeMetricFamily("vllm:engine_sleep_state", "It never sleeps.", labels=(*LABELS, "sleep_state"))
        for state, is_so in (("awake", 1), ("weights_offloaded", 0), ("discard_all", 0)):
            sleeps.add_metric((*self._labels, state), is_so)
        yield sleeps
        for name, text, count in (
            ("vllm:num_preemptions", "Requests paused for others.", stats.num_preemptions),
            ("vllm:prefix_cache_queries", "Prompt tokens that were looked for among those computed before.",
             stats.num_looked_up),
            ("vllm:prefix_cache_hits", "Prompt tokens that were found there.", stats.num_found),
            ("vllm:prompt_tokens_cached", "Prompt tokens that were not computed, since they were before.",
             stats.num_found),
            ("longspan:num_migrations", "Times that KV moved between instances.", stats.num_migrations),
            ("longspan:non_finite_logits", "Requests ended since the model's logits were not finite.",
             stats.num_bad_logits),
            ("longspan:instances_lost", "Times that an instance was lost.", stats.num_losses),
            ("longspan:event_log_errors", "Errors that ended the event log.", stats.event_log_errors),
            ("longspan:recomputed_tokens", "Tokens computed again, since their KV was gone.", stats.num_recomputed),
            ("longspan:lost_tokens", "Tokens whose KV went with an instance.", stats.num_lost),
        ):  # fmt: skip
            counter = CounterMetricFamily(name, text, labels=LABELS)
            counter.add_metric(self._labels, count)
            yield counter
        yield self._by_instance("used", "KV slots of tokens that some request uses.", stats.kv_tokens_used_by_instance)
        cached_here = stats.kv_tokens_cached_by_instance
        yield self._by_instance("cached", "KV slots of tokens that no request uses now.", cached_here)
        cached = GaugeMetricFamily("longspan:kv_tokens_cached", "KV slots that no request uses now.", labels=LABELS)
        cached.add_metric(self._labels, stats.kv_tokens_cached)
        yield cached
        groups = GaugeMetricFamily("longspan:groups_running", "Sets of instances that have a batch.", labels=LABELS)
        groups.add_metric(self._labels, stats.num_groups)
        yield groups
        if stats.iterations is not None:
            yield from self._iterations(stats.iterations)
        if stats.elasticity is not None:
            yield from self._elasticity(stats.elasticity)
        yield from self._workers(stats.workers)

    def _elasticity(self, elasticity: Elasticity) -> Iterator[Metric]:
        scalings = CounterMetricFamily(
            "longspan:scalings", "Changes of the instances that compute for a request or hold its KV.",
            labels=(*LABELS, "direction"),
        )  # fmt: skip
        for direction, times in elasticity.scalings.items():
            scalings.add_metric((*self._labels, direction), times)
        yield scalings
        for name, text, count in (
            ("prefill_pauses", "Times that a prefill paused, and went on.", elasticity.pauses),
            ("prefill_paused_seconds", "Seconds of these pauses.", elasticity.paused_s),
        ):
            counter = CounterMetricFamily(f"longspan:{name}", text, labels=LABELS)
            counter.add_metric(self._labels, count)
            yield counter

    def _workers(self, workers: Sequence[WorkerUsage]) -> Iterator[Metric]:
        labels = (*LABELS, "instance", "worker")
        cpu = CounterMetricFamily("longspan:worker_cpu_seconds", "Processor time of a worker.", labels=labels)
        busy = CounterMetricFamily("longspan:worker_busy_seconds", "Time that a worker had work.", labels=labels)
        rss = GaugeMetricFamily("longspan:worker_resident_memory_bytes", "Memory of its process.", labels=labels)
        used = GaugeMetricFamily("longspan:worker_kv_slots_used", "KV slots taken on a worker.", labels=labels)
        for worker in workers:
            whose = (*self._labels, str(worker.instance), str(worker.worker))
            cpu.add_metric(whose, worker.cpu_s)
            busy.add_metric(whose, worker.busy_s)
            rss.add_metric(whose, worker.rss_bytes)
            used.add_metric(whose, worker.kv_slots_used)
        yield from (cpu, busy, rss, used)

    def _iterations(self, iterations: Iterations) -> Iterator[Metric]:
        name, text = "vllm:iteration_tokens_total", "Tokens that an iteration runs."
        yield self._histogram(name, text, {(): iterations.tokens})
        name, text = "longspan:prefill_chunk_tokens", "Tokens of one prompt that an iteration runs."
        yield self._histogram(name, text, {(): iterations.chunks})
        for name, text, found in (
            ("longspan:iteration_parallelism", "Instances that an iteration runs on.", iterations.parallelism),
            ("longspan:iteration_seconds", "Seconds that its slowest instance spends in the model.",
             iterations.seconds),
            ("longspan:iteration_prediction_ratio", "The same, divided by what was predicted.", iterations.ratios),
        ):  # fmt: skip
            yield self._histogram(name, text, {(kind,): histogram for kind, histogram in found.items()}, ("kind",))

    def _histogram(
        self, name: str, text: str, found: Mapping[tuple[str, ...], Histogram], extra: tuple[str, ...] = ()
    ) -> Metric:
        family = HistogramMetricFamily(name, text, labels=(*LABELS, *extra))
        for labels, histogram in found.items():
            family.add_metric((*self._labels, *labels), histogram.buckets(), histogram.total)
        return family

    def _by_instance(self, what: str, text: str, tokens: Sequence[int]) -> Metric:
        family = GaugeMetricFamily(f"longspan:instance_kv_tokens_{what}", text, labels=(*LABELS, "instance"))
        for instance, count in enumerate(tokens):
            family.add_metric((*self._labels, str(instance)), count)
        return family

    def _gauge(self, name: str, text: str, value: float, extra: dict[str, str] | None = None) -> Metric:
        extra = extra or {}
        gauge = GaugeMetricFamily(f"vllm:{name}", text, labels=(*LABELS, *extra))
        gauge.add_metric((*self._labels, *extra.values()), value)
        return gauge
