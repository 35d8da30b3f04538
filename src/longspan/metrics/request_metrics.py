"""How well requests were served: from the times of each to latencies by class, SLO attainment and goodput.

Nothing here knows where the times come from: a client's clock, or a simulator's. Only differences count.

    TTFT                first token - arrival
    TPOT                (last token - first token) / (output tokens - 1); none for an output of one token
    ITL                 the gaps between one request's deliveries, also called TBT; pooled over requests
    e2e                 last token - arrival
    normalised          LoongServe's three: e2e / (prompt + output tokens), TTFT / prompt tokens, and TPOT
    goodput             requests a second that finished within the SLO
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from longspan.errors import ConfigError

# refused: turned away before any work. failed: broke off. unfinished: still running when the measurement stopped.
Outcome = Literal["finished", "refused", "failed", "unfinished"]
RequestClass = Literal["all", "short", "long"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request, seen from where its answer arrives. All times are seconds on one clock.

    arrived_s: when it came, or was due to come. ended_s: when its outcome was known.
    token_times_s: when each delivery of output came, in order; one may carry several tokens.
    num_output_tokens: of what was delivered.
    """

    arrived_s: float
    ended_s: float
    num_prompt_tokens: int
    num_output_tokens: int
    token_times_s: Sequence[float] = ()
    outcome: Outcome = "finished"

    @property
    def finished(self) -> bool:
        return self.outcome == "finished"

    @property
    def ttft_s(self) -> float | None:
        return self.token_times_s[0] - self.arrived_s if self.token_times_s else None

    @property
    def tpot_s(self) -> float | None:
        if self.num_output_tokens < 2 or not self.token_times_s:
            return None
        return (self.token_times_s[-1] - self.token_times_s[0]) / (self.num_output_tokens - 1)

    @property
    def e2e_s(self) -> float | None:
        return self.token_times_s[-1] - self.arrived_s if self.token_times_s else None


@dataclass(frozen=True, slots=True, kw_only=True)
class SLO:
    """The promise to each request, in seconds; None promises nothing."""

    ttft_s: float | None = None
    tpot_s: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("ttft", self.ttft_s), ("tpot", self.tpot_s)):
            if value is not None and not value > 0:
                raise ConfigError(f"the SLO's {name} is {value}, but must be above 0 seconds")

    def met_by(self, record: RequestRecord) -> bool:
        """Tell whether it is met. An output of one token has no TPOT, and keeps any promise about it."""
        return (
            record.finished
            and _within(record.ttft_s, self.ttft_s, unknown=False)
            and _within(record.tpot_s, self.tpot_s, unknown=True)
        )


@dataclass(frozen=True, slots=True)
class Distribution:
    """The distribution of one latency over requests. Percentiles lie linearly between the two nearest values."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Distribution | None:
        """Return the distribution of the values that are known; None if there are none."""
        return cls.of_array(np.array([value for value in values if value is not None], dtype=np.float64))

    @classmethod
    def of_array(cls, values: NDArray[np.float64]) -> Distribution | None:
        if not values.size:
            return None
        p50, p90, p99 = (float(p) for p in np.percentile(values, (50, 90, 99)))
        return cls(int(values.size), float(values.mean()), p50, p90, p99, float(values.max()))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMetrics:
    """One class of requests. Latencies are of those that finished, seconds.

    slo_attainment: the share within the SLO, of all but the unfinished; a refused or failed one is not within it.
    goodput: requests a second, over the whole measurement's span.
    per_token_s, input_s, output_s: LoongServe's normalised latencies, means over requests.
    """

    num_requests: int
    num_finished: int
    num_refused: int
    num_failed: int
    num_unfinished: int
    prompt_tokens: int
    output_tokens: int
    ttft_s: Distribution | None
    tpot_s: Distribution | None
    itl_s: Distribution | None
    e2e_s: Distribution | None
    per_token_s: float | None
    input_s: float | None
    output_s: float | None
    slo_attainment: float | None
    goodput: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMetrics:
    """A whole measurement.

    span_s: from the first arrival to the last end. Rates are over this span, of finished requests.
    classes: short and long by their prompts' lengths, where there are any; and all.
    """

    span_s: float
    requests_per_s: float
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    classes: dict[RequestClass, ClassMetrics]


def measure(records: Sequence[RequestRecord], *, slo: SLO | None = None, long_threshold: int = 4096) -> RequestMetrics:
    """Measure requests.

    long_threshold: a prompt of so many tokens is long, one of fewer is short. Without an SLO, all that finish
    are within it.
    """
    slo = slo or SLO()
    begin = min((record.arrived_s for record in records), default=0.0)
    span_s = max((record.ended_s for record in records), default=0.0) - begin
    members: dict[RequestClass, list[RequestRecord]] = {"all": list(records), "short": [], "long": []}
    for record in records:
        members["long" if record.num_prompt_tokens >= long_threshold else "short"].append(record)
    classes = {
        name: _measure_class(group, slo, span_s) for name, group in members.items() if group or name == "all"
    }
    everyone = classes["all"]
    return RequestMetrics(
        span_s=span_s,
        requests_per_s=_rate(everyone.num_finished, span_s),
        prompt_tokens_per_s=_rate(everyone.prompt_tokens, span_s),
        output_tokens_per_s=_rate(everyone.output_tokens, span_s),
        classes=classes,
    )


def _measure_class(records: Sequence[RequestRecord], slo: SLO, span_s: float) -> ClassMetrics:
    finished = [record for record in records if record.finished]
    judged = sum(record.outcome != "unfinished" for record in records)
    met = sum(slo.met_by(record) for record in records)
    return ClassMetrics(
        num_requests=len(records),
        num_finished=len(finished),
        num_refused=sum(record.outcome == "refused" for record in records),
        num_failed=sum(record.outcome == "failed" for record in records),
        num_unfinished=len(records) - judged,
        prompt_tokens=sum(record.num_prompt_tokens for record in finished),
        output_tokens=sum(record.num_output_tokens for record in finished),
        ttft_s=Distribution.of(record.ttft_s for record in finished),
        tpot_s=Distribution.of(record.tpot_s for record in finished),
        itl_s=Distribution.of_array(_gaps(finished)),
        e2e_s=Distribution.of(record.e2e_s for record in finished),
        per_token_s=_mean(_per(r.e2e_s, r.num_prompt_tokens + r.num_output_tokens) for r in finished),
        input_s=_mean(_per(record.ttft_s, record.num_prompt_tokens) for record in finished),
        output_s=_mean(record.tpot_s for record in finished),
        slo_attainment=met / judged if judged else None,
        goodput=_rate(met, span_s),
    )


def _gaps(records: Sequence[RequestRecord]) -> NDArray[np.float64]:
    """Between one request's deliveries, of all requests; in an array, for there may be millions."""
    times = [np.asarray(record.token_times_s, dtype=np.float64) for record in records]
    return np.concatenate([np.diff(of_one) for of_one in times]) if times else np.empty(0)


def _within(value: float | None, limit: float | None, *, unknown: bool) -> bool:
    if limit is None:
        return True
    return unknown if value is None else value <= limit


def _per(seconds: float | None, tokens: int) -> float | None:
    return None if seconds is None or tokens == 0 else seconds / tokens


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _rate(amount: int, seconds: float) -> float:
    return amount / seconds if seconds > 0 else 0.0
