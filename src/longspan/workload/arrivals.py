"""When requests arrive: endless streams of seconds since the start, the same for the same seed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from longspan.errors import ConfigError


def poisson(rate: float, seed: int) -> Iterator[float]:
    """Yield independent arrivals, `rate` a second: gaps are exponential."""
    return gamma(rate, 1.0, seed)


def gamma(rate: float, cv2: float, seed: int) -> Iterator[float]:
    """Yield arrivals with gamma-distributed gaps, `rate` a second.

    cv2: burstiness, the squared coefficient of variation (variance over squared mean) of the gaps: 1 is Poisson,
        more comes in bursts, less is more even. It is 1 / shape of the gamma distribution; vLLM's `burstiness` is
        that shape.
    """
    _positive("rate", rate)
    _positive("cv2", cv2)
    shape, scale = 1 / cv2, cv2 / rate
    draw = random.Random(seed)
    return itertools.accumulate(draw.gammavariate(shape, scale) for _ in itertools.count())


def interval(every_s: float, first_s: float = 0.0) -> Iterator[float]:
    """Yield one every `every_s` seconds."""
    _positive("every_s", every_s)
    return (first_s + every_s * number for number in itertools.count())


def _positive(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise ConfigError(f"{name} is {value}, but must be above 0")
