"""Attention kernels alone: prefill against the matrix product's rate, decode against the copy's.

What a batch of decodes reads is K and V of all its contexts, once.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from case import Case, Figures, NotHereError, Where
from longspan.attention.backend import AttentionBackend, PagedSegment
from parts.ceilings import ceiling
from shapes import ModelShape
from subjects import BLOCKS, Block, attention_here
from timing import seconds_each, spread

BUDGET_S = 70.0
BATCHES = (1, 16, 64)
_POOL_BYTES = 24 << 30  # the most that K and V of one layer may take


def cases(where: Where) -> Iterator[Case]:
    subjects = {name: s.backend for name, s in attention_here(where.device).items() if s.fast}
    for shape in where.shapes:
        for tokens in shape.prompts:
            for name, make in subjects.items():
                yield Case(
                    f"prefill {tokens}, {name}, {shape.name}",
                    lambda m=make, s=shape, t=tokens: prefill(where, m().block, s, t),
                )
            for name, block in BLOCKS.items():
                yield Case(
                    f"prefill {tokens}, {name}, {shape.name}",
                    lambda b=block, s=shape, t=tokens: prefill(where, b, s, t),
                )
        for context in shape.contexts:
            for batch in BATCHES:
                for name, make in subjects.items():
                    yield Case(
                        f"decode {batch}x{context}, {name}, {shape.name}",
                        lambda m=make, s=shape, b=batch, c=context: decode(where, m(), s, b, c),
                    )


def prefill(where: Where, block: Block, shape: ModelShape, tokens: int) -> Figures:
    """One causal block of a layer: 2 T^2 K H operations, the half that is not masked."""
    possible = ceiling(where, "flops_per_s")
    q, k, v = (
        torch.randn(tokens, h, shape.head_dim, device=where.device).to(torch.bfloat16)
        for h in (shape.heads, shape.kv_heads, shape.kv_heads)
    )
    times = seconds_each(lambda: block(q, k, v, causal=True, scale=shape.head_dim**-0.5), where.device, 5)
    seconds = spread(times)["median_s"]
    rate = 2.0 * tokens**2 * shape.heads * shape.head_dim / seconds
    return spread(times) | {"flops_per_s": rate, "of_matrix_product": rate / possible}


def decode(where: Where, backend: AttentionBackend, shape: ModelShape, batch: int, context: int) -> Figures:
    """One layer of a batch of decodes over shuffled slots."""
    possible = ceiling(where, "bytes_per_s")
    element = torch.bfloat16.itemsize
    bytes_read = 2 * batch * context * shape.kv_heads * shape.head_dim * element
    if bytes_read > _POOL_BYTES:
        raise NotHereError(f"{bytes_read / 2**30:.0f} GiB of K and V in one layer")
    like = torch.empty(0, dtype=torch.bfloat16, device=where.device)
    k, v = (like.new_empty(shape.kv_heads, batch * context, shape.head_dim).normal_() for _ in "kv")
    slots = torch.randperm(batch * context, device=where.device)
    plan = backend.plan_paged(
        [PagedSegment(i, i + 1, slots[i * context : (i + 1) * context].contiguous()) for i in range(batch)]
    )
    q = torch.randn(batch, shape.heads, shape.head_dim, device=where.device).to(torch.bfloat16)
    times = seconds_each(lambda: plan.attend(q, k, v, shape.head_dim**-0.5), where.device, 5)
    rate = bytes_read / spread(times)["median_s"]
    return spread(times) | {"bytes_per_s": rate, "of_copy": rate / possible}

