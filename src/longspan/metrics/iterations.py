"""What the engine's iterations were like: counts that cost next to nothing, read when metrics are."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from longspan.core.costs.batch_shape import BatchShape

KINDS = ("prefill", "decode", "mixed")

TOKEN_BUCKETS = (1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0)
CHUNK_BUCKETS = (16.0, 64.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0, 65536.0, 131072.0)
PARALLELISM_BUCKETS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0, 64.0, 128.0)
SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
RATIO_BUCKETS = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2.0, 4.0, 8.0)


class Histogram:
    """Values by the bound that they do not exceed.

    bounds: rising; what exceeds the last is counted behind it. total: of all values.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Return each bound, as Prometheus writes it, and how many values do not exceed it."""
        found: list[tuple[str, float]] = []
        count = 0
        for bound, more in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            count += more
            found.append((bound, float(count)))
        return found


class Iterations:
    """All iterations that have ended.

    tokens: that one ran. chunks: tokens that one ran of a prompt. parallelism, seconds, ratios: by kind, how many
    instances one ran on, how long the slowest of them spent in the model, and how many times the prediction that is.
    """

    def __init__(self) -> None:
        self.tokens = Histogram(TOKEN_BUCKETS)
        self.chunks = Histogram(CHUNK_BUCKETS)
        self.parallelism = {kind: Histogram(PARALLELISM_BUCKETS) for kind in KINDS}
        self.seconds = {kind: Histogram(SECONDS_BUCKETS) for kind in KINDS}
        self.ratios = {kind: Histogram(RATIO_BUCKETS) for kind in KINDS}

    def note(self, shape: BatchShape, seconds: float, predicted_s: float | None) -> None:
        """Count one. predicted_s: None: nothing was predicted, or something else than these seconds."""
        kind = shape.kind
        self.tokens.observe(shape.num_requests + sum([chunk.length for chunk in shape.chunks]))
        for chunk in shape.chunks:
            self.chunks.observe(chunk.length)
        self.parallelism[kind].observe(shape.num_instances)
        self.seconds[kind].observe(seconds)
        if predicted_s:
            self.ratios[kind].observe(seconds / predicted_s)
