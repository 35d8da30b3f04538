"""What a server keeps of its responses, as metrics: asked for when they are read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from longspan.metrics.engine_collector import LABELS


class StoredResponses(Protocol):
    """Who keeps them: how many, their bytes, and how many had to give way to newer ones."""

    num_responses: int
    num_bytes: int
    num_evicted: int


class StoredResponsesCollector(Collector):
    """Asks at each scrape."""

    def __init__(self, labels: tuple[str, str], stored: StoredResponses) -> None:
        self._labels = labels
        self._stored = stored

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        stored = self._stored
        for name, text, value in (
            ("longspan:stored_responses", "Responses that clients may ask for again.", stored.num_responses),
            ("longspan:stored_response_bytes", "What is kept of them, bytes.", stored.num_bytes),
        ):
            gauge = GaugeMetricFamily(name, text, labels=LABELS)
            gauge.add_metric(self._labels, value)
            yield gauge
        evicted = CounterMetricFamily(
            "longspan:stored_responses_evicted", "Responses given up for newer ones.", labels=LABELS
        )
        evicted.add_metric(self._labels, stored.num_evicted)
        yield evicted
