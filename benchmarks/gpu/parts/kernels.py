"""Every kernel against float64: slots shuffled, all of the pool that nobody may read poisoned, outputs too.

Shapes as in attention/backend.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from case import Case, Figures, Where, WrongError, short
from longspan.attention.backend import AttentionBackend, PagedSegment
from longspan.attention.partial import Partial
from longspan.layers.elementwise import Elementwise
from subjects import BLOCKS, ELEMENTWISE, FLOATS, Block, attention_here

BUDGET_S = 70.0
HEADS = {1: (4, 4), 3: (9, 3), 4: (8, 2), 6: (12, 2)}  # query heads for each KV head: (query heads, KV heads)
HEAD_DIMS = (64, 128)
OUT_BOUND = {torch.float32: 1e-5, torch.bfloat16: 1e-2}  # |ours - truth| / |truth|
# The largest difference. Torch's kernel for CPUs rounds scores of bf16: 1.45e-2 was seen in some thousand draws.
LSE_BOUND = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
SINGLES = (1, 9, 64, 65, 300, 1029)  # contexts of lone rows
SEVERAL = ((7, 50), (40, 600), (130, 257))  # (rows, context)


def cases(where: Where) -> Iterator[Case]:
    for name, subject in attention_here(where.device).items():
        for dtype in subject.dtypes:
            for head_dim in HEAD_DIMS:
                for group in HEADS:
                    what = f"{name}, {short(dtype)}, head_dim {head_dim}, GQA {group}"
                    yield Case(
                        what, lambda s=subject, d=dtype, k=head_dim, g=group: attention(where, s.backend(), d, k, g)
                    )
    for name, block in BLOCKS.items():
        for head_dim in HEAD_DIMS:
            yield Case(
                f"{name}, bf16, head_dim {head_dim}",
                lambda b=block, k=head_dim: check(blocks(where, b, torch.bfloat16, k, 4), torch.bfloat16),
            )
    for name, make in ELEMENTWISE.items():
        for dtype in FLOATS:
            yield Case(f"elementwise {name}, {short(dtype)}", lambda m=make, d=dtype: elementwise(where, m(), d))


def attention(where: Where, backend: AttentionBackend, dtype: torch.dtype, head_dim: int, group: int) -> Figures:
    figures = blocks(where, backend.block, dtype, head_dim, group)
    figures |= paged(where, backend, dtype, head_dim, group)
    figures |= merging(where, backend, head_dim, group)
    return check(figures, dtype)


def blocks(where: Where, block: Block, dtype: torch.dtype, head_dim: int, group: int) -> Figures:
    heads, kv_heads = HEADS[group]
    figures = {}
    for rows, keys, causal in ((1, 1, True), (77, 77, True), (300, 300, True), (5, 130, False), (200, 3, False)):
        shapes = ((rows, heads), (keys, kv_heads), (keys, kv_heads))
        q, k, v = (random((n, h, head_dim), dtype, where) for n, h in shapes)
        poison(where)
        ours = block(q, k, v, causal=causal, scale=head_dim**-0.5)
        kind = "causal" if causal else "full"
        figures |= compared(f"{kind} {rows}x{keys}", ours, truth(q, k, v, head_dim**-0.5, causal=causal))
    return figures


def paged(where: Where, backend: AttentionBackend, dtype: torch.dtype, head_dim: int, group: int) -> Figures:
    """Lone rows (a decode), then lone rows and chunks in one batch; behind each segment a row that sees nothing."""
    heads, kv_heads = HEADS[group]
    lone = [(1, keys) for keys in SINGLES]
    figures = {}
    for name, wanted in (("decode", lone), ("chunks and decodes", [*lone, *SEVERAL])):
        pool_slots = 2 * sum(keys for _, keys in wanted)
        slots = torch.randperm(pool_slots)
        k, v = (torch.full((kv_heads, pool_slots, head_dim), torch.nan, dtype=dtype, device=where.device) for _ in "kv")
        segments, row, taken = [], 0, 0
        for rows, keys in wanted:
            mine = slots[taken : taken + keys].to(where.device)
            for cache in (k, v):
                cache[:, mine] = random((kv_heads, keys, head_dim), dtype, where)
            segments.append(PagedSegment(row, row + rows, mine))
            row, taken = row + rows + 1, taken + keys
        q = random((row, heads, head_dim), dtype, where)
        poison(where)
        ours = backend.plan_paged(segments).attend(q, k, v, head_dim**-0.5)
        out, lse = torch.zeros(q.shape, dtype=torch.float64), torch.full(q.shape[:2], -torch.inf, dtype=torch.float64)
        for s in segments:
            rows = slice(s.start, s.stop)
            keys_SGK, values_SGK = (cache[:, s.slots].transpose(0, 1) for cache in (k, v))
            out[rows], lse[rows] = truth(q[rows], keys_SGK, values_SGK, head_dim**-0.5, causal=False)
        figures |= compared(name, ours, Partial(out, lse))
    return figures


def merging(where: Where, backend: AttentionBackend, head_dim: int, group: int) -> Figures:
    """Rows of a result with a part, one of them over no keys at all."""
    heads, _ = HEADS[group]
    shapes = ((9, heads, head_dim), (9, heads))
    result, part = (Partial(*(random(shape, torch.float32, where) for shape in shapes)) for _ in "rp")
    part.out_THK[4], part.lse_TH[4] = 0.0, -torch.inf
    index = torch.tensor([0, 3, 4, 8], device=where.device)
    exact = Partial(result.out_THK.double().cpu(), result.lse_TH.double().cpu())
    theirs = Partial(part.out_THK[index].double().cpu(), part.lse_TH[index].double().cpu())
    rows = index.cpu()
    lse = torch.logaddexp(exact.lse_TH[rows], theirs.lse_TH)
    exact.out_THK[rows] = exact.out_THK[rows] * (exact.lse_TH[rows] - lse).exp()[..., None] + theirs.out_THK * (
        theirs.lse_TH - lse
    ).exp()[..., None]
    exact.lse_TH[rows] = lse
    backend.merge_rows_(result, index, Partial(part.out_THK[index], part.lse_TH[index]))
    return compared("merge", result, exact)


def elementwise(where: Where, ops: Elementwise, dtype: torch.dtype) -> Figures:
    rows, hidden, heads, head_dim, width = 37, 512, 6, 64, 384
    figures: Figures = {}

    def against(name: str, ours: torch.Tensor, exact: torch.Tensor) -> None:
        figures[f"{name}: out"] = relative(ours, exact)

    def norm(x: torch.Tensor) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double().cpu()

    x = random((rows, hidden), torch.float32, where)
    delta, weight = random((rows, hidden), dtype, where), random((hidden,), dtype, where)
    poison(where)
    against("norm", ops.rms_norm(x, weight, 1e-5), norm(x.double().cpu()))
    sum_, normed = ops.add_and_norm(x.clone(), delta, weight, 1e-5)
    exact_sum = x.double().cpu() + delta.double().cpu()
    against("add", sum_, exact_sum)
    against("add and norm", normed, norm(exact_sum))
    turned = random((rows, heads, head_dim), dtype, where)
    angles = random((rows, 1, head_dim // 2), torch.float32, where)
    first, second = turned.double().cpu().chunk(2, -1)
    cos, sin = angles.double().cpu().cos(), angles.double().cpu().sin()
    exact = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
    against("rotate", ops.rotate(turned, angles.cos(), angles.sin()), exact)
    gate_up = random((rows, 2 * width), dtype, where)
    gate, up = gate_up.double().cpu().chunk(2, -1)
    against("silu and mul", ops.silu_and_mul(gate_up), torch.nn.functional.silu(gate) * up)
    return check(figures, dtype)


def truth(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, *, causal: bool) -> Partial:
    """In float64 on the CPU, from the inputs as they are rounded."""
    q, k, v = (x.double().cpu() for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = torch.einsum("thk,shk->hts", q, k) * scale
    if causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[1:], dtype=torch.bool).tril(), -torch.inf)
    return Partial(torch.einsum("hts,shk->thk", scores.softmax(-1), v), scores.logsumexp(-1).transpose(0, 1))


def compared(name: str, ours: Partial, exact: Partial) -> Figures:
    """An empty partial is exactly so on both sides."""
    lse, exact_lse = ours.lse_TH.double().cpu(), exact.lse_TH.double().cpu()
    empty = exact_lse == -torch.inf
    difference = torch.where(empty, torch.where(lse == -torch.inf, 0.0, torch.inf), (lse - exact_lse).abs())
    largest = float(difference.nan_to_num(torch.inf).max())
    return {f"{name}: out": relative(ours.out_THK, exact.out_THK), f"{name}: lse": largest}


def relative(ours: torch.Tensor, exact: torch.Tensor) -> float:
    """NaN anywhere is infinitely wrong."""
    error = (ours.double().cpu() - exact.double().cpu()).norm() / exact.double().norm()
    return float(error.nan_to_num(torch.inf))


def check(figures: Figures, dtype: torch.dtype) -> Figures:
    bounds = {name: (LSE_BOUND if name.endswith("lse") else OUT_BOUND)[dtype] for name in figures}
    wrong = [f"{name} {figures[name]:.1e} > {bound:.0e}" for name, bound in bounds.items() if figures[name] > bound]
    if wrong:
        raise WrongError("; ".join(wrong), figures)
    return figures


def random(shape: tuple[int, ...], dtype: torch.dtype, where: Where) -> torch.Tensor:
    return torch.randn(shape, device=where.device).to(dtype)


def poison(where: Where) -> None:
    """Leave NaN in the memory that the allocator hands out next, so that what a kernel does not write shows."""
    sizes = (1 << 10, 1 << 14, 1 << 17, 1 << 20)
    poisoned = [torch.full((size,), torch.nan, device=where.device) for size in sizes for _ in range(2)]
    del poisoned
