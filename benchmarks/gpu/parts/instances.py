"""One model on 1, 2 and 4 instances, threads of one process: logits of every step against one in fp32 on the CPU.

A prompt is prefilled in a ring over all instances and kept by all; then each step's master asks the others. The tokens
are given, so that all runs see the same. What sees the logits is in the place of the sampler.
"""

from __future__ import annotations

import functools
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from case import Case, Figures, Where, WrongError, short
from longspan.core.actions import KVRange, RunBatch, Segment
from longspan.distributed.local import LocalTransport, LocalWorld
from longspan.distributed.stream import stream_on
from longspan.sampling_params import SamplingParams
from longspan.worker.device import resolve_device
from longspan.worker.messages import AllocateKV, Run
from longspan.worker.sampling_state import SampledToken, SamplingState
from longspan.worker.spec import WorkerSpec
from longspan.worker.worker import Worker
from shapes import ModelShape

BUDGET_S = 60.0
SHAPE = ModelShape(
    "small", layers=4, hidden=512, heads=8, kv_heads=2, head_dim=64, ffn=1024, vocab=2000,
    contexts=(0, 0, 0), prompts=(0, 0, 0), chunk=0,
)  # fmt: skip
LOGITS_BOUND = {torch.float32: 1e-4, torch.bfloat16: 3e-2}  # |ours - exact| / |exact|
PROMPT, STEPS, REQUESTS = 203, 6, 3


def cases(where: Where) -> Iterator[Case]:
    for dtype in where.dtypes:
        for instances in (1, 2, 4):
            yield Case(f"{instances} instances, {short(dtype)}", lambda d=dtype, n=instances: against_cpu(where, d, n))


def against_cpu(where: Where, dtype: torch.dtype, instances: int) -> Figures:
    exact = logits_on("cpu", torch.float32, 1)
    ours = logits_on(where.device.type, dtype, instances)
    error = max(float((a - b).norm() / b.norm()) for a, b in zip(ours, exact, strict=True))
    agreeing = sum(int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in zip(ours, exact, strict=True))
    figures = {"largest_relative_error": error, "same_best_token": agreeing, "of": REQUESTS * (1 + STEPS)}
    if not error <= LOGITS_BOUND[dtype]:
        raise WrongError(f"relative error {error:.1e} > {LOGITS_BOUND[dtype]:.0e}", figures)
    return figures


@functools.cache
def logits_on(device: str, dtype: torch.dtype, instances: int) -> list[torch.Tensor]:
    """For each batch, logits [R, V] of the requests, in fp32 on the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        SHAPE.write(Path(folder))
        return run_everywhere([spec(folder, device, dtype, rank, instances) for rank in range(instances)])


def run_everywhere(specs: list[WorkerSpec]) -> list[torch.Tensor]:
    """A thread for each worker; they share the first one's weights."""
    instances = len(specs)
    seen: dict[str, torch.Tensor] = {}
    world = LocalWorld(instances, tp_size=1)
    first = Worker(specs[0], LocalTransport(world, 0))
    failures: list[BaseException] = []

    def serve(rank: int) -> None:
        try:
            stream = stream_on(resolve_device(specs[rank]))
            worker = Worker(specs[rank], LocalTransport(world, rank, stream), model=first.model, stream=stream)
            worker.execute(AllocateKV(REQUESTS * (PROMPT + STEPS)))
            assert worker.runner is not None
            for number, command in enumerate(commands(instances)):
                worker.runner.sampler = Recorder(seen, number)  # type: ignore[assignment]  # in its sampler's place
                worker.execute(command)
        except BaseException as error:
            failures.append(error)
            world.give_up()

    threads = [threading.Thread(target=serve, args=(rank,), daemon=True) for rank in range(instances)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return [torch.stack([seen[f"{n}, r{i}"] for i in range(REQUESTS)]) for n in range(1 + STEPS)]


class Recorder:
    """In the place of `Sampler`: keeps the logits, and answers with any token, for the next one is given."""

    def __init__(self, seen: dict[str, torch.Tensor], number: int) -> None:
        self.seen = seen
        self.number = number

    def sample(self, logits_EV: torch.Tensor, states: Sequence[SamplingState]) -> list[SampledToken]:
        for state, logits in zip(states, logits_EV.float().cpu(), strict=True):
            self.seen[f"{self.number}, r{state.seed}"] = logits
        return [SampledToken(0)] * len(states)


def commands(instances: int) -> list[Run]:
    """A prefill of all requests over all instances, then decodes, whose master changes."""
    everyone = tuple(range(instances))
    edges = [PROMPT * i // instances for i in range(instances + 1)]
    kept = [KVRange(i, edges[i], edges[i + 1]) for i in everyone]
    held = [{i: kept[i].length for i in everyone} for _ in range(REQUESTS)]
    requests = [f"r{i}" for i in range(REQUESTS)]
    # A seed is the request's number, by which the recorder knows it.
    states = {r: SamplingState.start(SamplingParams(temperature=0.0), seed=i) for i, r in enumerate(requests)}
    prefill = [
        Segment(r, 0, PROMPT, everyone, tuple(kept), residence=i) for i, r in enumerate(requests)
    ]
    runs = [Run(RunBatch(0, everyone, tuple(prefill)), {r: tokens(i, PROMPT) for i, r in enumerate(requests)}, states)]
    for step in range(STEPS):
        segments, at = [], PROMPT + step
        for i, request in enumerate(requests):
            master = (i + step) % instances
            context = tuple((k, n) for k, n in held[i].items() if n)
            kept_here = (KVRange(master, at, at + 1),)
            segments.append(Segment(request, at, 1, (master,), kept_here, context, True, i))
            held[i][master] += 1
        ids = {r: tokens(100 * i + step, 1) for i, r in enumerate(requests)}
        runs.append(Run(RunBatch(1 + step, everyone, tuple(segments)), ids, states))
    return runs


def tokens(seed: int, count: int) -> bytes:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, SHAPE.vocab, (count,), dtype=torch.int32, generator=draw).numpy().tobytes()


def spec(folder: str, device: str, dtype: torch.dtype, rank: int, instances: int) -> WorkerSpec:
    return WorkerSpec(
        model_path=folder, instance=rank, tp_rank=0, num_instances=instances, tp=1,
        dtype="float32" if dtype == torch.float32 else "bfloat16", device=device, threads=1, shares_devices=True,
    )  # fmt: skip
