"""What is counted at every token, in a moment: how many there are, and the time from each to the next."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from longspan.metrics.engine_collector import LABELS
from longspan.metrics.iterations import Histogram

# vLLM's own bounds, so that panels written for them line up.
ITL_BUCKETS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip


class TokenMetrics(Collector):
    """Counts on one thread, the one that reads it: without the locks that prometheus_client's own metrics take.

    generated: tokens. gaps: seconds from token to token.
    """

    def __init__(self, labels: tuple[str, str]) -> None:
        self._labels = labels
        self.generated = 0
        self.gaps = Histogram(ITL_BUCKETS)

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        generated = CounterMetricFamily("vllm:generation_tokens", "Tokens generated.", labels=LABELS)
        generated.add_metric(self._labels, self.generated)
        yield generated
        gaps = HistogramMetricFamily("vllm:inter_token_latency_seconds", "Token to next token.", labels=LABELS)
        gaps.add_metric(self._labels, self.gaps.buckets(), self.gaps.total)
        yield gaps
