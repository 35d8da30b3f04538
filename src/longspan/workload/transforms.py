"""Workloads made out of given ones: fitted to a limit of length, cut, or put on another clock."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from longspan.errors import ConfigError
from longspan.workload.traces import BLOCK_TOKENS, TraceRequest

MIN_TOKENS = 2  # one of prompt, one of output


def with_arrivals(requests: Iterable[TraceRequest], arrivals: Iterable[float]) -> Iterator[TraceRequest]:
    """Yield the same lengths at these times, until either ends."""
    return (replace(request, arrived_at_s=at) for request, at in zip(requests, arrivals, strict=False))


def first_seconds(requests: Iterable[TraceRequest], seconds: float) -> Iterator[TraceRequest]:
    """Yield those that arrive before `seconds`; for workloads with arrivals, in their order."""
    return itertools.takewhile(lambda request: _arrival(request) < seconds, requests)


def at_rate(requests: Sequence[TraceRequest], rate: float) -> list[TraceRequest]:
    """Stretch or squeeze arrivals so that there are `rate` a second on average; bursts stay bursts."""
    if not rate > 0:
        raise ConfigError(f"rate is {rate}, but must be above 0")
    span = _arrival(requests[-1]) - _arrival(requests[0])
    if span == 0:  # one request, or one burst: there is nothing to stretch
        return list(requests)
    factor = (len(requests) - 1) / rate / span
    return [replace(request, arrived_at_s=_arrival(request) * factor) for request in requests]


def of_tenant(requests: Iterable[TraceRequest], tenant: str | None) -> Iterator[TraceRequest]:
    """Yield the same requests, for one tenant (`ServiceLevel`)."""
    return (replace(request, service=replace(request.service, tenant=tenant)) for request in requests)


def merged(*workloads: Iterable[TraceRequest]) -> Iterator[TraceRequest]:
    """Yield the requests of several workloads with arrivals as they come. Each is in order itself."""
    return heapq.merge(*workloads, key=_arrival)


def clipped_to(requests: Iterable[TraceRequest], max_tokens: int) -> Iterator[TraceRequest]:
    """Cut prompt and output together to `max_tokens`. The prompt goes first, since outputs set the decode load."""
    _check_limit(max_tokens)
    for request in requests:
        output = min(request.num_output_tokens, max_tokens - 1)
        prompt = min(request.num_prompt_tokens, max_tokens - output)
        ids = request.prefix_block_ids[: math.ceil(prompt / BLOCK_TOKENS)]
        yield replace(request, num_prompt_tokens=prompt, num_output_tokens=output, prefix_block_ids=ids)


def scaled_to(requests: Sequence[TraceRequest], max_tokens: int) -> list[TraceRequest]:
    """Multiply all lengths by one factor so that the longest request, prompt and output together, has
    `max_tokens`; rounded down, but to 1 at least. A workload that fits already stays as it is.
    """
    _check_limit(max_tokens)
    longest = max(request.num_tokens for request in requests)
    if longest <= max_tokens:
        return list(requests)
    return [
        replace(
            _with_scaled_prompt(request, max_tokens, longest),
            num_output_tokens=max(1, request.num_output_tokens * max_tokens // longest),
        )
        for request in requests
    ]


def prompts_scaled_to(requests: Sequence[TraceRequest], max_tokens: int) -> list[TraceRequest]:
    """Scale as `scaled_to`, but only prompts, so that the longest of them has `max_tokens`; outputs stay."""
    _check_limit(max_tokens)
    longest = max(request.num_prompt_tokens for request in requests)
    if longest <= max_tokens:
        return list(requests)
    return [_with_scaled_prompt(request, max_tokens, longest) for request in requests]


def _with_scaled_prompt(request: TraceRequest, over: int, under: int) -> TraceRequest:
    tokens = max(1, request.num_prompt_tokens * over // under)
    return replace(request, num_prompt_tokens=tokens, prefix_block_ids=_scaled_ids(request, over, under))


def _scaled_ids(request: TraceRequest, over: int, under: int) -> tuple[int, ...]:
    """Each new block is named after the old block in which it ends: an id says that all before it is equal too,
    so scaled prompts share what the scaled shared part holds in whole blocks.
    """
    ids = request.prefix_block_ids
    if not ids:
        return ()
    num_tokens = max(1, request.num_prompt_tokens * over // under)
    ends = (math.ceil((block + 1) * under / over) - 1 for block in range(math.ceil(num_tokens / BLOCK_TOKENS)))
    return tuple(ids[min(end, len(ids) - 1)] for end in ends)


def _check_limit(max_tokens: int) -> None:
    if max_tokens < MIN_TOKENS:
        raise ConfigError(f"max_tokens is {max_tokens}, but must be at least {MIN_TOKENS}")


def _arrival(request: TraceRequest) -> float:
    if request.arrived_at_s is None:
        raise ConfigError("the workload has lengths only, no arrivals: draw them first")
    return request.arrived_at_s
