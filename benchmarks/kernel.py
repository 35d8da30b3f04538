"""Attention kernels of one CPU: ours against torch's, and against what the machine can do.

Prefill: a causal block, in GFLOP/s (2 T^2 K H: the half that is not masked), with the share of a measured bf16 matrix
product. Decode: one row against a long context in the pool, in GB/s of K and V, with the share of a measured read.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from common import arguments, interleaved, paired_ratio, save, say
from longspan.attention.backend import AttentionBackend, PagedSegment
from longspan.attention.cpu import CpuBackend
from longspan.attention.native.backend import NativeCpuBackend
from longspan.attention.native.isa import available_isas

SHAPES = {64: (9, 3), 128: (8, 2)}  # head_dim: (query heads, KV heads)
GEMM_SIZE = 1024
POOL_BYTES = 400_000_000  # far more than the caches hold


def timed(work: Callable[[], Any], repeats: int = 1) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - begin) / repeats


def gemm() -> Callable[[], Any]:
    a, b = (torch.randn(GEMM_SIZE, GEMM_SIZE, dtype=torch.bfloat16) for _ in range(2))
    return lambda: a @ b


def prefill(sides: dict[str, AttentionBackend], tokens: int, head_dim: int, rounds: int) -> dict[str, Any]:
    heads, kv_heads = SHAPES[head_dim]
    q, k, v = (torch.randn(tokens, h, head_dim, dtype=torch.bfloat16) for h in (heads, kv_heads, kv_heads))
    product = gemm()

    def attend(backend: AttentionBackend) -> Callable[[int], float]:
        return lambda _: timed(lambda: backend.block(q, k, v, causal=True, scale=head_dim**-0.5))

    seconds = interleaved(
        {name: attend(backend) for name, backend in sides.items()} | {"gemm": lambda _: timed(product, 20)}, rounds
    )
    work = dict.fromkeys(sides, 2.0 * tokens**2 * head_dim * heads) | {"gemm": 2.0 * GEMM_SIZE**3}
    gflops = {name: work[name] / median(times) / 1e9 for name, times in seconds.items()}
    share = work["torch"] / work["gemm"] * paired_ratio(seconds["gemm"], seconds["native"])
    return {
        "tokens": tokens, "head_dim": head_dim, "heads": heads, "kv_heads": kv_heads,
        "gflops": gflops, "native_over_torch": paired_ratio(seconds["torch"], seconds["native"]),
        "native_share_of_gemm": share, "seconds": seconds,
    }  # fmt: skip


def decode(
    sides: dict[str, AttentionBackend], context: int, head_dim: int, scattered: bool, rounds: int
) -> dict[str, Any]:
    heads, kv_heads = SHAPES[head_dim]
    bytes_read = 2 * kv_heads * context * head_dim * 2
    layers = max(2, POOL_BYTES // bytes_read)
    pool = torch.zeros(2, layers, kv_heads, context, head_dim, dtype=torch.bfloat16).normal_()
    q = torch.randn(1, heads, head_dim, dtype=torch.bfloat16)
    slots = torch.randperm(context) if scattered else torch.arange(context)
    everything = torch.ones(POOL_BYTES // 4)

    def attend(backend: AttentionBackend) -> Callable[[int], float]:
        plan = backend.plan_paged([PagedSegment(0, 1, slots)])

        def step() -> None:
            for k, v in zip(pool[0], pool[1], strict=True):
                plan.attend(q, k, v, head_dim**-0.5)

        return lambda _: timed(step)

    seconds = interleaved(
        {name: attend(backend) for name, backend in sides.items()} | {"read": lambda _: timed(everything.sum)}, rounds
    )
    work = dict.fromkeys(sides, float(layers * bytes_read)) | {"read": 4.0 * everything.numel()}
    return {
        "context": context, "head_dim": head_dim, "heads": heads, "kv_heads": kv_heads,
        "slots": "scattered" if scattered else "consecutive",
        "gigabytes_per_second": {name: work[name] / median(times) / 1e9 for name, times in seconds.items()},
        "native_over_torch": paired_ratio(seconds["torch"], seconds["native"]),
        "native_share_of_read": work["torch"] / work["read"] * paired_ratio(seconds["read"], seconds["native"]),
        "seconds": seconds,
    }  # fmt: skip


def main() -> None:
    options = arguments(
        "Attention kernels on a CPU.",
        [("rounds", 5, "rounds of each comparison"), ("long-rounds", 2, "the same at 32k tokens"),
         ("name", "kernel", "name of the result")],
    )  # fmt: skip
    isa = available_isas()[0]
    sides: dict[str, AttentionBackend] = {"native": NativeCpuBackend.for_isa(isa), "torch": CpuBackend()}
    results: dict[str, Any] = {"isa": isa.label, "prefill": [], "decode": []}
    torch.manual_seed(0)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for head_dim in SHAPES:
            for tokens, rounds in ((8192, options.rounds), (32768, options.long_rounds)):
                result = {"threads": threads} | prefill(sides, tokens, head_dim, rounds)
                results["prefill"].append(result)
                say(f"prefill {tokens:6d} x {head_dim:3d}, {threads} threads: "
                    + ", ".join(f"{name} {value:.0f}" for name, value in result["gflops"].items())
                    + f" GFLOP/s; {result['native_over_torch']:.2f} x torch, "
                    f"{result['native_share_of_gemm']:.0%} of the matrix product")  # fmt: skip
            for scattered in (False, True):
                result = {"threads": threads} | decode(sides, 32768, head_dim, scattered, options.rounds)
                results["decode"].append(result)
                say(f"decode   32768 x {head_dim:3d}, {threads} threads, {result['slots']} slots: "
                    + ", ".join(f"{name} {value:.1f}" for name, value in result["gigabytes_per_second"].items())
                    + f" GB/s; {result['native_over_torch']:.2f} x torch, "
                    f"{result['native_share_of_read']:.0%} of the read")  # fmt: skip
    save(options.name, results)


if __name__ == "__main__":
    main()
