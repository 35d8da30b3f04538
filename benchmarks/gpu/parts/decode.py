"""Decode steps of a whole model on one instance, through the worker's own runner: eager, and from a graph.

A step reads all weights but the embedding, and K and V of all contexts: over the copy's rate that is its floor.
"""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch

from case import Case, Figures, NotHereError, Where
from longspan.attention.backend import AttentionBackend
from longspan.attention.elastic import ElasticAttention
from longspan.attention.layout import plan_layout, positions_of
from model import Runner
from parts.attention import BATCHES
from parts.ceilings import ceiling
from parts.prefill import model_of
from shapes import ModelShape
from subjects import attention_here
from timing import seconds_each, spread, synchronize, wall_seconds_each

BUDGET_S = 110.0
_STEPS, _WARMUP, _TOP = 10, 3, 16


def cases(where: Where) -> Iterator[Case]:
    """By context, so that the short ones come first."""
    for shape in where.shapes:
        for context in shape.contexts:
            for batch in BATCHES:
                for name, subject in attention_here(where.device).items():
                    if subject.fast:
                        kinds = [step, graph, launches] if context == shape.contexts[0] else [step, graph]
                        for kind in kinds:
                            run = functools.partial(with_backend, kind, where, subject.backend, shape, batch, context)
                            yield Case(f"{kind.__name__} {batch}x{context}, {name}, {shape.name}", run)


def with_backend(
    kind: Callable[..., Figures], where: Where, make: Callable[[], AttentionBackend], *load: Any
) -> Figures:
    return kind(where, make(), *load)


def filled(where: Where, backend: AttentionBackend, shape: ModelShape, batch: int, context: int) -> Runner:
    ceiling(where, "bytes_per_s")  # before the memory is full
    runner = Runner.of(shape, model_of(shape, where.device), backend, batch * (context + _STEPS + _WARMUP + 2))
    runner.fill(batch, context)
    return runner


def steps(runner: Runner, batch: int, context: int) -> Callable[[], Any]:
    """Each call is the next step."""
    done = iter(range(context, 1 << 30))
    return lambda: runner.runner.run(runner.decode(batch, next(done)))


@torch.inference_mode()
def step(where: Where, backend: AttentionBackend, shape: ModelShape, batch: int, context: int) -> Figures:
    """Whole steps on the host's clock: layout, uploads, all layers, sampling, and the tokens back on the host."""
    runner = filled(where, backend, shape, batch, context)
    times = wall_seconds_each(steps(runner, batch, context), where.device, _STEPS, _WARMUP)
    return of_floor(where, shape, batch, context, times)


@torch.inference_mode()
def graph(where: Where, backend: AttentionBackend, shape: ModelShape, batch: int, context: int) -> Figures:
    """All layers of one step, captured once and played again: what is left when no host is in the way."""
    if not where.is_cuda:
        raise NotHereError("a CPU has no graphs")
    runner = filled(where, backend, shape, batch, context).runner
    command = Runner(shape, runner, shape.vocab).decode(batch, context)
    layout = plan_layout(command.batch, 0, runner.pool, where.device)
    attention = ElasticAttention(
        layout, runner.pool, backend, runner.transport, runner.rank_of, shape.head_dim**-0.5
    )
    positions = torch.from_numpy(positions_of(layout)).to(where.device)
    x = torch.randn(batch, shape.hidden, device=where.device)

    def layers() -> torch.Tensor:
        return runner.model.run_layers(x.clone(), positions, attention, runner.tp)

    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        layers()
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        layers()
    eager = seconds_each(layers, where.device, _STEPS)
    return of_floor(where, shape, batch, context, seconds_each(captured.replay, where.device, _STEPS)) | {
        "layers_eager": spread(eager)
    }


@torch.inference_mode()
def launches(where: Where, backend: AttentionBackend, shape: ModelShape, batch: int, context: int) -> Figures:
    """Of one step: kernels by name, and where the host had to wait for the device."""
    run = steps(filled(where, backend, shape, batch, context), batch, context)
    run()
    synchronize(where.device)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if where.is_cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        run()
        synchronize(where.device)
    events = profile.key_averages()
    if where.is_cuda:
        kernels = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
        seconds = {e.key[:80]: e.self_device_time_total / 1e6 for e in kernels}
    else:
        kernels = [e for e in events if e.key.startswith("aten::")]
        seconds = {e.key: e.self_cpu_time_total / 1e6 for e in kernels}
    counts = {e.key[:80]: e.count for e in kernels}
    top = sorted(seconds, key=lambda key: -seconds[key])[:_TOP]
    return {
        "launched": sum(counts.values()),
        "seconds": sum(seconds.values()),
        "by_time": [{"kernel": key, "count": counts[key], "seconds": seconds[key]} for key in top],
    } | (synchronisations(run) if where.is_cuda else {})


def synchronisations(run: Callable[[], Any]) -> Figures:
    """Where the host waits, by the place in the source that asks."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in caught if "synchron" in str(w.message)]
    places = Counter(f"{'/'.join(w.filename.split('/')[-2:])}:{w.lineno}" for w in waits)
    return {"synchronisations": sum(places.values()), "synchronisations_at": dict(places.most_common())}


def of_floor(where: Where, shape: ModelShape, batch: int, context: int, times: list[float]) -> Figures:
    element = torch.bfloat16.itemsize
    read = element * (shape.weights_read + batch * context * shape.kv_elements_per_token)
    floor = read / ceiling(where, "bytes_per_s")
    return spread(times) | {"bytes_read": read, "floor_s": floor, "of_copy": floor / spread(times)["median_s"]}
