"""What the device can do at most: a copy, a matrix product, uploads, and how fast work can be handed to it."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

from case import Case, Figures, NotHereError, Where
from timing import median_seconds, wall_seconds_each

BUDGET_S = 30.0
COPIED = {False: 16 << 20, True: 1 << 30}  # bytes
MULTIPLIED = {False: 256, True: 8192}
_LAUNCHES = 1000


def cases(where: Where) -> Iterator[Case]:
    for large in (False, True) if where.large else (False,):
        size = "large" if large else "tiny"
        yield Case(f"copy, {size}", lambda large=large: copy(where, COPIED[large]))
        yield Case(f"matrix product, {size}", lambda large=large: matmul(where, MULTIPLIED[large]))
        yield Case(f"upload, {size}", lambda large=large: upload(where, 256 << 20 if large else 1 << 20))
    yield Case("launches", lambda: launches(where))
    yield Case("launches from a graph", lambda: graph_launches(where))


def copy(where: Where, size: int) -> Figures:
    """Bytes read plus bytes written. Two pairs of buffers take turns."""
    pairs = [
        [torch.randint(0, 255, (size,), dtype=torch.uint8, device=where.device) for _ in range(2)] for _ in range(2)
    ]

    def work() -> None:
        for source, target in pairs:
            target.copy_(source)

    seconds = median_seconds(work, where.device, 10) / len(pairs)
    return {"bytes": size, "seconds": seconds, "bytes_per_s": 2 * size / seconds}


def matmul(where: Where, size: int) -> Figures:
    """Random data: zeros draw less power, and so run faster than anything real."""
    a, b = (torch.randn(size, size, device=where.device).to(torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    seconds = median_seconds(lambda: torch.mm(a, b, out=out), where.device, 20, warmup=5)
    return {"size": size, "dtype": "bf16", "seconds": seconds, "flops_per_s": 2.0 * size**3 / seconds}


def upload(where: Where, size: int) -> Figures:
    target = torch.empty(size, dtype=torch.uint8, device=where.device)
    sources = {"pageable": torch.ones(size, dtype=torch.uint8)}
    if where.is_cuda:
        sources["pinned"] = sources["pageable"].pin_memory()
    return {
        name: size / min(wall_seconds_each(lambda source=source: target.copy_(source), where.device, 5))
        for name, source in sources.items()
    } | {"bytes": size, "unit": "bytes per s"}


def launches(where: Where) -> Figures:
    """One tiny operator after the other: what the host needs for each, and what the device does."""
    x = torch.zeros(16, device=where.device)

    def work() -> None:
        for _ in range(_LAUNCHES):
            x.add_(1)

    return {"seconds_each": min(wall_seconds_each(work, where.device, 5)) / _LAUNCHES}


def graph_launches(where: Where) -> Figures:
    if not where.is_cuda:
        raise NotHereError("a CPU has no graphs")
    x = torch.zeros(16, device=where.device)
    graph = torch.cuda.CUDAGraph()
    x.add_(1)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for _ in range(_LAUNCHES):
            x.add_(1)
    return {"seconds_each": min(wall_seconds_each(graph.replay, where.device, 5)) / _LAUNCHES}


@functools.cache
def ceiling(where: Where, name: str) -> float:
    """`bytes_per_s` of a copy or `flops_per_s` of a matrix product, measured once in this process.

    The inputs of the case that measures it are drawn as if it had not.
    """
    with torch.random.fork_rng():
        figures = copy(where, COPIED[where.large]) if name == "bytes_per_s" else matmul(where, MULTIPLIED[where.large])
    return float(figures[name])
