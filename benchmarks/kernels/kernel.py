"""Attention kernels of one CPU: ours against torch's, and against what the machine can do.

Prefill (a causal block) and chunk (512 tokens against a long context in the pool): GFLOP/s, with shares of torch's
bf16 matrix product and of the peak, a loop of multiply-adds that never leaves the registers. Decode (one token against
a long context in the pool): GB/s of K and V, with the share of a plain read of the same memory by as many threads,
the better one of two ways in each round. Every round measures all sides in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from benchmarks.common import arguments, interleaved, paired_ratio, save, say, timed
from benchmarks.kernels.machine_peak import MachinePeak
from longspan.attention.backend import AttentionBackend, PagedSegment
from longspan.attention.cpu import CpuBackend
from longspan.attention.native import NativeCpuBackend
from longspan.native.isa import available_isas
from longspan.worker.kv_pool import KVPool

SHAPES = {64: (9, 3), 128: (8, 2)}  # head_dim: (query heads, KV heads)
LONG_SHAPES = {64: (3, 1), 128: (4, 1)}  # of the blocks of 32k tokens, whose time would be too long else
CONTEXT = 32_768
CHUNK = 512
GEMM_SIZE = 1024
PEAK_ROUNDS = 1_000_000
POOL_BYTES = 400_000_000  # far more than the caches hold

Sides = dict[str, AttentionBackend]
Side = Callable[[int], float]


def computed(sides: dict[str, Side], flops: float, peak: MachinePeak, rounds: int) -> dict[str, Any]:
    """GFLOP/s of the sides, of torch's matrix product and of the peak; the sides' shares of both."""
    threads = torch.get_num_threads()
    a, b = (torch.randn(GEMM_SIZE, GEMM_SIZE, dtype=torch.bfloat16) for _ in range(2))
    yardsticks: dict[str, Side] = {
        "gemm": lambda _: timed(lambda: a @ b, 20),
        "peak": lambda _: timed(lambda: peak.multiply(PEAK_ROUNDS, threads)),
    }
    seconds = interleaved(sides | yardsticks, rounds)
    work = dict.fromkeys(sides, flops) | {
        "gemm": 2.0 * GEMM_SIZE**3,
        "peak": float(peak.flops_per_round * PEAK_ROUNDS * threads),
    }

    def share(name: str, of: str) -> float:
        return work[name] / work[of] * paired_ratio(seconds[of], seconds[name])

    return {
        "gflops": {name: work[name] / median(times) / 1e9 for name, times in seconds.items()},
        "native_over_torch": paired_ratio(seconds["torch"], seconds["native"]),
        "share_of_gemm": {name: share(name, "gemm") for name in sides},
        "share_of_peak": {name: share(name, "peak") for name in (*sides, "gemm")},
        "seconds": seconds,
    }


def prefill(sides: Sides, peak: MachinePeak, tokens: int, head_dim: int, rounds: int) -> dict[str, Any]:
    """2 T^2 K H operations: the half that is not masked."""
    heads, kv_heads = (SHAPES if tokens < CONTEXT else LONG_SHAPES)[head_dim]
    q, k, v = (torch.randn(tokens, h, head_dim, dtype=torch.bfloat16) for h in (heads, kv_heads, kv_heads))

    def attend(backend: AttentionBackend) -> Side:
        return lambda _: timed(lambda: backend.block(q, k, v, causal=True, scale=head_dim**-0.5))

    attending = {name: attend(backend) for name, backend in sides.items()}
    return {
        "tokens": tokens, "head_dim": head_dim, "heads": heads, "kv_heads": kv_heads,
        **computed(attending, 2.0 * tokens**2 * head_dim * heads, peak, rounds),
    }  # fmt: skip


def pool_of(head_dim: int) -> KVPool:
    """As a worker has it, with as many layers as the caches cannot hold."""
    _, kv_heads = SHAPES[head_dim]
    layers = POOL_BYTES // (2 * kv_heads * CONTEXT * head_dim * 2)
    pool = KVPool(layers, kv_heads, CONTEXT, head_dim, torch.bfloat16, torch.device("cpu"))
    pool.k_LGNK.normal_()
    pool.v_LGNK.normal_()
    return pool


def slots_of(scattered: bool) -> torch.Tensor:
    return torch.randperm(CONTEXT) if scattered else torch.arange(CONTEXT)


def through_the_pool(
    pool: KVPool, backend: AttentionBackend, q: torch.Tensor, slots: torch.Tensor, layers: int
) -> Side:
    """Attention of all rows to all slots, in so many layers."""
    plan = backend.plan_paged([PagedSegment(0, len(q), slots)])

    def step() -> None:
        for layer in range(layers):
            plan.attend(q, *pool.layer(layer), q.shape[-1] ** -0.5)

    return lambda _: timed(step)


def chunk(sides: Sides, peak: MachinePeak, pool: KVPool, scattered: bool, rounds: int) -> dict[str, Any]:
    head_dim = pool.k_LGNK.shape[-1]
    heads, kv_heads = SHAPES[head_dim]
    q, slots = torch.randn(CHUNK, heads, head_dim, dtype=torch.bfloat16), slots_of(scattered)
    attending = {name: through_the_pool(pool, backend, q, slots, 1) for name, backend in sides.items()}
    return {
        "tokens": CHUNK, "context": CONTEXT, "head_dim": head_dim, "heads": heads, "kv_heads": kv_heads,
        "slots": "scattered" if scattered else "consecutive",
        **computed(attending, 4.0 * CHUNK * CONTEXT * head_dim * heads, peak, rounds),
    }  # fmt: skip


def decode(sides: Sides, peak: MachinePeak, pool: KVPool, scattered: bool, rounds: int) -> dict[str, Any]:
    threads = torch.get_num_threads()
    layers, kv_heads, context, head_dim = pool.k_LGNK.shape
    heads, _ = SHAPES[head_dim]
    q, slots = torch.randn(1, heads, head_dim, dtype=torch.bfloat16), slots_of(scattered)

    def read(prefetched: bool) -> None:
        peak.read(pool.k_LGNK, threads, prefetched=prefetched)
        peak.read(pool.v_LGNK, threads, prefetched=prefetched)

    attending = {name: through_the_pool(pool, backend, q, slots, layers) for name, backend in sides.items()}
    reading: dict[str, Side] = {
        "read": lambda _: min(timed(lambda: read(False)), timed(lambda: read(True))),
    }
    seconds = interleaved(attending | reading, rounds)
    gigabytes = 2 * pool.k_LGNK.numel() * 2 / 1e9
    return {
        "context": context, "head_dim": head_dim, "heads": heads, "kv_heads": kv_heads,
        "slots": "scattered" if scattered else "consecutive",
        "gigabytes_per_second": {name: gigabytes / median(times) for name, times in seconds.items()},
        "native_over_torch": paired_ratio(seconds["torch"], seconds["native"]),
        "share_of_read": {name: paired_ratio(seconds["read"], seconds[name]) for name in sides},
        "seconds": seconds,
    }  # fmt: skip


def say_computed(what: str, result: dict[str, Any]) -> None:
    say(
        f"{what}: " + ", ".join(f"{name} {value:.0f}" for name, value in result["gflops"].items())
        + f" GFLOP/s; {result['native_over_torch']:.2f} x torch, "
        f"{result['share_of_gemm']['native']:.0%} of the matrix product, "
        f"{result['share_of_peak']['native']:.0%} of the peak"
    )  # fmt: skip


def say_read(what: str, result: dict[str, Any]) -> None:
    say(
        f"{what}: " + ", ".join(f"{name} {value:.1f}" for name, value in result["gigabytes_per_second"].items())
        + f" GB/s; {result['native_over_torch']:.2f} x torch, {result['share_of_read']['native']:.0%} of a read"
    )  # fmt: skip


def main() -> None:
    options = arguments(
        "Attention kernels on a CPU.",
        [("rounds", 5, "rounds of each comparison"), ("long-rounds", 2, "the same for blocks of 32k tokens"),
         ("name", "kernel", "name of the result")],
    )  # fmt: skip
    isa = available_isas()[0]
    sides: Sides = {"native": NativeCpuBackend.for_isa(isa), "torch": CpuBackend()}
    peak = MachinePeak(isa)
    results: dict[str, Any] = {"isa": isa.label, "prefill": [], "chunk": [], "decode": []}
    torch.manual_seed(0)
    for head_dim in SHAPES:
        pool = pool_of(head_dim)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            where = f"head_dim {head_dim:3d}, {threads} threads"
            for tokens, rounds in ((8192, options.rounds), (CONTEXT, options.long_rounds)):
                result = prefill(sides, peak, tokens, head_dim, rounds)
                results["prefill"].append({"threads": threads} | result)
                say_computed(f"prefill {tokens:6d}, {where}", result)
            for scattered in (False, True):
                result = chunk(sides, peak, pool, scattered, options.rounds)
                results["chunk"].append({"threads": threads} | result)
                say_computed(f"chunk {CHUNK} + {CONTEXT}, {where}, {result['slots']} slots", result)
                result = decode(sides, peak, pool, scattered, options.rounds)
                results["decode"].append({"threads": threads} | result)
                say_read(f"decode {CONTEXT}, {where}, {result['slots']} slots", result)
    # Four times torch's flash attention, for which the kernels were asked, in units of what the processor has.
    results["four_times_torch_over_peak"] = [4 * r["share_of_peak"]["torch"] for r in results["prefill"]]
    save(options.name, results)


if __name__ == "__main__":
    main()
