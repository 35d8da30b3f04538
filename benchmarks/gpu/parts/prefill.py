"""Prompts of a whole model on one instance, in chunks where they are long, through the worker's own runner."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from itertools import pairwise

import torch

from case import Case, Figures, Where
from longspan.attention.backend import AttentionBackend
from longspan.core.actions import OWN
from longspan.models.llama import LlamaModel
from model import Runner, load
from parts.ceilings import ceiling
from shapes import ModelShape
from subjects import attention_here
from timing import wall_seconds_each

BUDGET_S = 80.0


def cases(where: Where) -> Iterator[Case]:
    for shape in where.shapes:
        for tokens in shape.prompts:
            for name, subject in attention_here(where.device).items():
                if subject.fast:
                    yield Case(
                        f"{tokens}, {name}, {shape.name}",
                        lambda s=shape, t=tokens, m=subject.backend: prompt(where, m(), s, t),
                    )


@functools.lru_cache(maxsize=1)
def model_of(shape: ModelShape, device: torch.device) -> LlamaModel:
    return load(shape, device)


@torch.inference_mode()
def prompt(where: Where, backend: AttentionBackend, shape: ModelShape, tokens: int) -> Figures:
    """Seconds of each chunk on the host's clock; the first prompt does not count."""
    possible = ceiling(where, "flops_per_s")
    if where.is_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    runner = Runner.of(shape, model_of(shape, where.device), backend, tokens)
    edges = [*range(0, tokens, shape.chunk), tokens]
    chunks = []

    def run(start: int, end: int, name: str) -> None:
        command = runner.chunk(name, start, end, last=end == tokens)
        chunks.extend(wall_seconds_each(lambda: runner.runner.run(command), where.device, 1, warmup=0))

    run(0, edges[1], "warm")
    runner.runner.pool.free(OWN)
    chunks.clear()
    for start, end in pairwise(edges):
        run(start, end, "r0")
    seconds = sum(chunks)
    rate = shape.prefill_flops(tokens) / seconds
    figures = {
        "seconds": seconds, "seconds_of_chunks": chunks, "tokens_per_s": tokens / seconds, "flops_per_s": rate,
        "of_matrix_product": rate / possible,
    }  # fmt: skip
    if where.is_cuda:
        figures["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
    return figures
