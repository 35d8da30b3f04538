"""One very long prompt on two instances: time, memory, and the share of what the processors can do.

The model has the shape of SmolLM2's layers (9 query and 3 KV heads of 64), four of them, and random weights. The
roofline is a bf16 matrix product on both cores at once, measured before and after.

    python -m benchmarks.engine.long_prompt [--tokens 131072]
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import arguments, save, say, time_prefill
from benchmarks.engine.random_model import RandomModel
from benchmarks.http_server import status_mib
from longspan import LLM

MODEL = RandomModel()
INSTANCES = 2
GEMM_SIZE, GEMM_REPEATS = 1536, 40


def gemm_gflops(_: int) -> float:
    torch.set_num_threads(1)
    a, b = (torch.randn(GEMM_SIZE, GEMM_SIZE, dtype=torch.bfloat16) for _ in range(2))
    a @ b
    begin = time.perf_counter()
    for _ in range(GEMM_REPEATS):
        a @ b
    return 2.0 * GEMM_SIZE**3 * GEMM_REPEATS / (time.perf_counter() - begin) / 1e9


def peak_gflops() -> float:
    """Both cores together, a process on each."""
    with multiprocessing.get_context("spawn").Pool(INSTANCES) as pool:
        return sum(pool.map(gemm_gflops, range(INSTANCES), chunksize=1))


def peak_memory_gib() -> dict[str, float]:
    """The most that each worker process ever had resident."""
    children = multiprocessing.active_children()
    return {child.name: status_mib(child.pid, "VmHWM") / 1024 for child in children if child.pid is not None}


def main() -> None:
    options = arguments(__doc__ or "", [("tokens", 131_072, "length of the prompt")])
    tokens = options.tokens
    with tempfile.TemporaryDirectory() as folder:
        MODEL.write(Path(folder), tokens + 64)
        before = peak_gflops()
        settings: dict[str, Any] = {"dtype": "bfloat16", "threads_per_device": 1, "kv_tokens": tokens // 2 + 1024}
        with LLM(folder, instances=INSTANCES, **settings) as llm:
            time_prefill(llm, 2048, seed=1)
            say(f"prefill of {tokens} tokens on {INSTANCES} instances ...")
            seconds = time_prefill(llm, tokens, seed=2)
            memory = peak_memory_gib()
        after = peak_gflops()
    work, peak = MODEL.flops(tokens), (before + after) / 2
    share = sum(work.values()) / seconds / 1e9 / peak
    kv_gib = tokens * MODEL.kv_bytes_per_token / 2**30
    say(f"{seconds:.1f} s, {tokens / seconds:.0f} tokens/s, {100 * share:.1f} % of the matrix product; peak memory "
        + ", ".join(f"{name} {gib:.2f} GiB" for name, gib in memory.items()) + f"; KV {kv_gib:.2f} GiB")  # fmt: skip
    save("long_prompt", {
        "tokens": tokens, "instances": INSTANCES, "model": MODEL.facts(), "seconds": seconds,
        "tokens_per_s": tokens / seconds, "flops": work,
        "gemm_gflops": {"before": before, "after": after}, "share_of_gemm": share, "kv_gib": kv_gib,
        "peak_memory_gib": memory,
    })  # fmt: skip


if __name__ == "__main__":
    main()
