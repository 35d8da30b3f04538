"""The grid's workloads: who comes, when, what each request is worth in work, and when its first token is due.

All of it depends on the workload, the load, k and the seed alone: policies and shapes get the same requests at the same
times with the same deadlines.

Work is the time that a request would take all devices together at best efficiency: its prompt in a batch so large that
fixed costs and reading weights vanish, and each further token in a decode batch as large. So no policy needs less on
any shape, and real batches need more: a load of 1 is out of reach, and how far so differs by shape.

    load = sum of all requests' work / (n gaps between arrivals)

The due time of a first token is max(k x alone, floor), alone being the least time that all devices need for the prompt
alone: as a ring in one batch, or as pipeline stages in chunks of one size, whichever is best.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path

from benchmarks.paper.simulated import Deployed, System, shuffled
from longspan.core.costs.batch_shape import BatchShape
from longspan.core.costs.cost_model import Chunk
from longspan.service_level import ServiceLevel
from longspan.simulator.cost import IterationCost
from longspan.simulator.spread import evenly_spread
from longspan.workload.arrivals import poisson
from longspan.workload.generator import loongserve_zipf, medha_mix
from longspan.workload.traces import TraceRequest, read_trace
from longspan.workload.transforms import with_arrivals

SHAPES = ("replicas", "spp")
FLOORS_S = {1.5: 0.5, 5.0: 1.0, 25.0: 15.0}
WARM_UP = 0.1  # of the requests that count; they come before those
SEEDS = 3
JITTER_S = 3.0  # Mooncake's times are those of batches of 3 s


@dataclass(frozen=True, slots=True)
class Hardware:
    """`parts` of `tp` devices each, which are so many instances, or stages of one."""

    machine: str
    model: str
    parts: int
    tp: int = 2

    def system(self, shape: str) -> System:
        """A batch of one instance has at most 256 decodes; an instance of all devices may run as many on each part."""
        if shape == "replicas":
            return System(policy="fcfs", instances=self.parts, tp=self.tp)
        many = {"max_batch_requests": 256 * self.parts}
        return System(policy="fcfs", instances=1, tp=self.tp, pp=self.parts, settings=many)


_A100, _A800 = Hardware("a100-80g", "llama-3-8b", 8), Hardware("a800-80g", "lwm-1m", 4)
WORKLOADS = {
    "medha_1": _A100,
    "medha_5": _A100,
    "mooncake_conversation": _A100,
    "azure_conv": _A100,
    "azure_code": _A100,
    "loongserve_mixed": _A100,
    "zipf_1.2": _A100,
    "loongserve_mixed_a800": _A800,
}


@dataclass(frozen=True, slots=True)
class Work:
    """Seconds of all devices together at best efficiency.

    token_s: for each token of a prompt. pair_s: for each pair of a token with itself or one before it.
    decoded_s, context_s: for each further token, and for each token of its context.
    """

    token_s: float
    pair_s: float
    decoded_s: float
    context_s: float

    @classmethod
    def of(cls, cost: IterationCost, parts: int) -> Work:
        """cost: of a fleet whose instances are one part each. A prompt of n tokens takes fixed + a n + b n (n + 1) / 2
        where compute is the limit, so three lengths tell a and b; shorter ones take no less than that.
        """
        m, many = 1 << 16, 1 << 20
        one, two, four = (_prompt_s(cost, 1, n) for n in (m, 2 * m, 4 * m))
        pair_s = ((four - two) - 2 * (two - one)) / (3 * m * m)
        token_s = ((two - one) - pair_s * (3 * m * m + m) / 2) / m
        decoded_s = cost.decode_alike(many, 0, 1) / many
        context_s = (cost.decode_alike(many, m, 1) / many - decoded_s) / m
        return cls(token_s / parts, pair_s / parts, decoded_s / parts, context_s / parts)

    def prompt(self, request: TraceRequest) -> float:
        n = request.num_prompt_tokens
        return self.token_s * n + self.pair_s * n * (n + 1) / 2

    def decodes(self, request: TraceRequest) -> float:
        """The first token comes with the prompt."""
        n, more = request.num_prompt_tokens, request.num_output_tokens - 1
        return more * self.decoded_s + self.context_s * (more * n + more * (more + 1) / 2)

    def whole(self, request: TraceRequest) -> float:
        return self.prompt(request) + self.decodes(request)


class Alone:
    """Seconds to the first token of a prompt that has all devices for itself; between few lengths, by lines."""

    CHUNKS = tuple(512 << power for power in range(8))
    MOST_CHUNKS = 256
    STEPS = 4  # lengths to a doubling

    def __init__(self, ring: IterationCost, pipeline: IterationCost) -> None:
        self._ring, self._pipeline = ring, pipeline
        self._at: dict[int, float] = {}
        self._lengths = sorted({round(16 * 2 ** (step / self.STEPS)) for step in range(18 * self.STEPS)})

    def __call__(self, tokens: int) -> float:
        place = max(1, bisect_left(self._lengths, tokens))
        low, high = self._lengths[place - 1], self._lengths[place]
        low_s, high_s = self._exact(low), self._exact(high)
        return max(low_s + (high_s - low_s) * (tokens - low) / (high - low), 0.5 * low_s)

    def _exact(self, tokens: int) -> float:
        if tokens not in self._at:
            rings = [_prompt_s(self._ring, number, tokens) for number in range(1, self._ring.fleet.instances + 1)]
            sizes = [size for size in self.CHUNKS if tokens <= size * self.MOST_CHUNKS]
            self._at[tokens] = min([*rings, *(self._chunked(tokens, size) for size in sizes)])
        return self._at[tokens]

    def _chunked(self, tokens: int, size: int) -> float:
        """The host prepares a chunk while the one before is computed."""
        free_at = [0.0] * self._pipeline.fleet.pp
        for start in range(0, tokens, size):
            shape = BatchShape(num_instances=1, chunks=(Chunk(min(size, tokens - start), start),))
            seconds = self._pipeline.batch(evenly_spread(shape))
            end_s = seconds.host if start == 0 else 0.0
            for stage, stage_s in enumerate(seconds.stages):
                end_s = free_at[stage] = max(end_s, free_at[stage]) + stage_s
        return free_at[-1]


def _prompt_s(cost: IterationCost, instances: int, tokens: int) -> float:
    return cost.batch(evenly_spread(BatchShape(num_instances=instances, chunks=(Chunk(tokens),)))).total


@lru_cache(maxsize=8)
def deployed(workload: str, shape: str) -> Deployed:
    """What policies predict with is fitted here, once."""
    hardware = WORKLOADS[workload]
    return Deployed(hardware.system(shape), hardware.machine, hardware.model)


@lru_cache(maxsize=8)
def yardsticks(hardware: Hardware) -> tuple[Work, Alone]:
    replicas, spp = (IterationCost(hardware.system(s).fleet(hardware.machine, hardware.model)) for s in SHAPES)
    return Work.of(replicas, hardware.parts), Alone(replicas, spp)


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests with arrivals and deadlines.

    counted_from_s: those that arrive before it warm up. num_cut: those that fit into no pool, and were left out.
    """

    requests: Sequence[TraceRequest]
    counted_from_s: float
    num_cut: int


@lru_cache(maxsize=2)
def workload(name: str, load: float, k: float, seed: int, num_counted: int, traces: str) -> Workload:
    hardware = WORKLOADS[name]
    work, alone = yardsticks(hardware)
    num_warm = round(WARM_UP * num_counted)
    most = min(_longest(name, shape) for shape in SHAPES)
    kept: list[TraceRequest] = []
    num_cut = 0
    for row in rows(name, seed, Path(traces)):
        if row.num_tokens > most:
            num_cut += 1
        else:
            kept.append(row)
        if len(kept) == num_warm + num_counted:
            break
    begin_s, end_s = kept[0].arrived_at_s or 0.0, kept[-1].arrived_at_s or 0.0
    span_s = (end_s - begin_s) * len(kept) / (len(kept) - 1)
    factor = sum(map(work.whole, kept)) / load / span_s
    requests = [
        replace(
            row, arrived_at_s=factor * ((row.arrived_at_s or 0.0) - begin_s), prefix_block_ids=(),
            service=ServiceLevel(ttft_s=max(k * alone(row.num_prompt_tokens), FLOORS_S[k])),
        )
        for row in kept
    ]  # fmt: skip
    return Workload(requests, requests[num_warm].arrived_at_s or 0.0, num_cut)


def rows(name: str, seed: int, traces: Path) -> Iterator[TraceRequest]:
    """Return requests as they come, at any rate: of a seed, from a place in the trace, or as they are drawn."""
    if name.startswith("medha_"):
        shorts = _trace(traces / "sharegpt_openchat4.csv.gz")
        return medha_mix(1.0, seed, long_share=float(name.removeprefix("medha_")) / 100, shorts=shorts)
    if name.startswith(("loongserve_mixed", "zipf_")):
        mixed = _trace(traces / "loongserve_mixed.csv.gz")
        drawn: Iterable[TraceRequest] = shuffled(mixed, seed)
        if name.startswith("zipf_"):
            drawn = loongserve_zipf(mixed, float(name.removeprefix("zipf_")), seed)
        return with_arrivals(drawn, poisson(1.0, seed))
    if name == "mooncake_conversation":
        return _window(_jittered(_trace(traces / f"{name}.csv.gz")), seed)
    return _window(_trace(traces / f"{name}_2023.csv.gz"), seed)


def _window(trace: Sequence[TraceRequest], seed: int) -> Iterator[TraceRequest]:
    """Begin at another of SEEDS places; what comes after the end of the trace is its beginning once more."""
    begin = len(trace) * (seed % SEEDS) // SEEDS
    times = [row.arrived_at_s or 0.0 for row in trace]
    period_s = (times[-1] - times[0]) * len(trace) / (len(trace) - 1)
    again = (replace(row, arrived_at_s=time + period_s) for row, time in zip(trace, times, strict=True))
    return islice(iter([*trace, *again]), begin, None)


def _jittered(trace: Sequence[TraceRequest]) -> list[TraceRequest]:
    draw = random.Random(0)
    moved = [replace(row, arrived_at_s=(row.arrived_at_s or 0.0) + draw.uniform(0.0, JITTER_S)) for row in trace]
    return sorted(moved, key=lambda row: row.arrived_at_s or 0.0)


@lru_cache(maxsize=4)
def _trace(path: Path) -> list[TraceRequest]:
    return read_trace(path)


def _longest(name: str, shape: str) -> int:
    """Tokens of the longest request that a fleet holds at all."""
    there = deployed(name, shape)
    return min(there.config.total_kv_tokens, there.cost.fleet.model.max_model_len)
