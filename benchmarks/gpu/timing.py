"""Seconds of work on a device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_each(work: Callable[[], Any], device: torch.device, repeats: int, warmup: int = 2) -> list[float]:
    """Of each call, by events of the device where it has some. Calls are queued without waiting in between."""
    for _ in range(warmup):
        work()
    synchronize(device)
    if device.type != "cuda":
        return [_host_seconds(work) for _ in range(repeats)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        work()
        event.record()
    synchronize(device)
    return [begin.elapsed_time(end) / 1e3 for begin, end in pairwise(events)]


def spread(seconds: list[float]) -> dict[str, float]:
    return {"median_s": statistics.median(seconds), "min_s": min(seconds), "max_s": max(seconds)}


def median_seconds(work: Callable[[], Any], device: torch.device, repeats: int, warmup: int = 2) -> float:
    return statistics.median(seconds_each(work, device, repeats, warmup))


def wall_seconds_each(work: Callable[[], Any], device: torch.device, repeats: int, warmup: int = 2) -> list[float]:
    """Of each call on the host's clock, until the device has done it."""

    def finished() -> None:
        work()
        synchronize(device)

    for _ in range(warmup):
        finished()
    return [_host_seconds(finished) for _ in range(repeats)]


def _host_seconds(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
