"""Made workloads: endless streams of requests, in order of arrival, the same for the same seed.

Cut them with `itertools.islice` or `transforms.first_seconds`.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import math
import random
from collections.abc import Iterator, Sequence

from longspan.errors import ConfigError
from longspan.workload import arrivals
from longspan.workload.traces import TraceRequest
from longspan.workload.transforms import with_arrivals

Range = tuple[int, int]

# What draws lengths must not depend on how many arrivals were drawn: each has a seed of its own.
_LENGTHS, _CLASSES = 1_000_003, 2_000_003


def fixed_lengths(num_prompt_tokens: int, num_output_tokens: int) -> Iterator[TraceRequest]:
    """Yield requests all alike, without arrivals."""
    return uniform_lengths((num_prompt_tokens,) * 2, (num_output_tokens,) * 2, seed=0)


def uniform_lengths(prompt: Range, output: Range, seed: int) -> Iterator[TraceRequest]:
    """Yield prompt and output lengths uniform in [low, high], without arrivals."""
    for name, (low, high) in (("prompt", prompt), ("output", output)):
        if not 1 <= low <= high:
            raise ConfigError(f"{name} lengths are {low} to {high}, but must be 1 or more, the smaller first")
    draw = random.Random(seed + _LENGTHS)
    return (TraceRequest(None, draw.randint(*prompt), draw.randint(*output)) for _ in itertools.count())


def mixed_long_short(
    seed: int,
    *,
    short_rate: float = 0.5,
    short_prompt: Range = (128, 384),
    long_prompt_tokens: int = 7500,
    shorts_to_a_long: float = 15.0,
    num_output_tokens: int = 32,
) -> Iterator[TraceRequest]:
    """Yield short prompts as a Poisson stream, and among them one long prompt at regular times.

    The first long one comes after half its interval, so that shorts run before and after it.
    """
    long_every_s = shorts_to_a_long / short_rate
    shorts = with_arrivals(
        uniform_lengths(short_prompt, (num_output_tokens, num_output_tokens), seed),
        arrivals.poisson(short_rate, seed),
    )
    longs = with_arrivals(
        fixed_lengths(long_prompt_tokens, num_output_tokens), arrivals.interval(long_every_s, long_every_s / 2)
    )
    return heapq.merge(shorts, longs, key=lambda request: request.arrived_at_s or 0.0)


def medha_mix(
    rate: float,
    seed: int,
    *,
    long_share: float = 0.05,
    long_prompt: Range = (131_072, 1_048_576),
    shorts: Sequence[TraceRequest] = (),
) -> Iterator[TraceRequest]:
    """Yield many short chats and a few very long prompts, Poisson; longs are few requests and nearly all tokens.

    A long prompt is log-uniform in `long_prompt`, its output LogNormal(ln 256, 0.5) in [32, 1024].
    shorts: a trace from which short requests are drawn, prompt and output together; without one they are
        LogNormal(6.633, 0.985) in [16, 8192] and LogNormal(5.019, 0.859) in [1, 1000], fitted to
        azure_conv_2023.
    """
    if not 0 <= long_share <= 1:
        raise ConfigError(f"long_share is {long_share}, but must lie in [0, 1]")

    def lengths() -> Iterator[TraceRequest]:
        kind, draw = random.Random(seed + _CLASSES), random.Random(seed + _LENGTHS)
        low, high = map(math.log, long_prompt)
        while True:
            if kind.random() < long_share:
                prompt = min(max(round(math.exp(draw.uniform(low, high))), long_prompt[0]), long_prompt[1])
                yield TraceRequest(None, prompt, _lognormal(draw, math.log(256), 0.5, (32, 1024)))
            elif shorts:
                row = draw.choice(shorts)
                yield TraceRequest(None, row.num_prompt_tokens, row.num_output_tokens)
            else:
                prompt = _lognormal(draw, 6.633, 0.985, (16, 8192))
                yield TraceRequest(None, prompt, _lognormal(draw, 5.019, 0.859, (1, 1000)))

    return with_arrivals(lengths(), arrivals.poisson(rate, seed))


def loongserve_zipf(
    pool: Sequence[TraceRequest], exponent: float, seed: int, *, lengths: Range = (10, 200_000)
) -> Iterator[TraceRequest]:
    """Yield prompt lengths x in [low, high) with P(x) ~ x^-exponent, each snapped to the nearest in the pool
    (LoongServe, figure 12), without arrivals. Among rows of that very length one is drawn.

    pool: in the paper ShareGPT, L-Eval and LV-Eval together, exponents 1.0, 1.2, 1.4 and 20,000 prompts.
    """
    if not pool:
        raise ConfigError("loongserve_zipf draws from a pool of real lengths: give it a trace")
    low, high = lengths
    rows: dict[int, list[TraceRequest]] = {}
    for row in pool:
        rows.setdefault(row.num_prompt_tokens, []).append(row)
    known = sorted(rows)
    total_weights = list(itertools.accumulate(x**-exponent for x in range(low, high)))

    def draws() -> Iterator[TraceRequest]:
        draw = random.Random(seed + _LENGTHS)
        while True:
            place = bisect.bisect(total_weights, draw.random() * total_weights[-1])
            row = draw.choice(rows[_nearest(known, low + min(place, high - low - 1))])
            yield TraceRequest(None, row.num_prompt_tokens, row.num_output_tokens)

    return draws()


def _lognormal(draw: random.Random, mu: float, sigma: float, within: Range) -> int:
    """Rejected outside `within`, as a truncated distribution is; its bounds hold nearly all of it."""
    while True:
        length = round(draw.lognormvariate(mu, sigma))
        if within[0] <= length <= within[1]:
            return length


def _nearest(ascending: Sequence[int], target: int) -> int:
    place = bisect.bisect(ascending, target)
    return min(ascending[max(0, place - 1) : place + 1], key=lambda length: abs(length - target))
