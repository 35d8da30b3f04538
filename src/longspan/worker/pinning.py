"""Each worker process on cores of its own: its caches stay warm, and no other worker gets in between.

Only where the workers together take all cores: with fewer, the system finds idle ones itself, and two servers on one
machine would otherwise end up on the same.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from longspan.worker.spec import WorkerSpec


def threads_of(spec: WorkerSpec, num_cores: int) -> int:
    """Return the CPU threads of a worker: what its spec says, else an even share of the cores."""
    return spec.threads or max(1, num_cores // spec.local_size)


def cores_of(spec: WorkerSpec, available: Sequence[int]) -> Sequence[int] | None:
    """Return the cores that are this worker's; None: wherever the system puts it."""
    threads = threads_of(spec, len(available))
    if threads * spec.local_size != len(available):
        return None
    return available[spec.local_rank * threads : (spec.local_rank + 1) * threads]


def pin(spec: WorkerSpec) -> WorkerSpec:
    """Pin before any thread starts, so that all inherit it. Returns the spec with `threads` set, if it pins."""
    if not hasattr(os, "sched_setaffinity") or spec.device == "cuda":
        return spec
    cores = cores_of(spec, sorted(os.sched_getaffinity(0)))
    if cores is None:
        return spec
    os.sched_setaffinity(0, cores)
    return replace(spec, threads=len(cores))
