"""Workers get cores of their own where together they take all of them."""

from __future__ import annotations

import os
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from longspan.executor.multiproc import MultiprocExecutor
from longspan.models.catalog import ResolvedModel
from longspan.worker.pinning import cores_of
from longspan.worker.spec import Host, WorkerSpec


def spec(rank: int, world: int, threads: int | None) -> WorkerSpec:
    return WorkerSpec(
        model_path="", instance=rank, tp_rank=0, num_instances=world, tp=1, dtype="float32", device="cpu",
        threads=threads,
    )  # fmt: skip


@given(st.integers(1, 8), st.none() | st.integers(1, 8), st.lists(st.integers(0, 200), unique=True, min_size=1))
def test_workers_share_all_cores_or_are_not_pinned(world: int, threads: int | None, cores: list[int]) -> None:
    shares = [cores_of(spec(rank, world, threads), cores) for rank in range(world)]
    wanted = world * (threads or max(1, len(cores) // world))
    if wanted == len(cores):
        assert [core for share in shares for core in share or ()] == cores
        assert len({len(share or ()) for share in shares}) == 1
    else:
        assert shares == [None] * world


def test_workers_of_one_machine_of_several_share_its_cores() -> None:
    """Whatever their ranks among all: here the third and the fourth of six."""
    there = [
        replace(
            spec(rank, 6, None), host=Host(node=1, address="10.0.0.2", token=b"", local_rank=place, local_size=2)
        )
        for place, rank in enumerate((2, 3))
    ]  # fmt: skip
    assert [cores_of(each, range(10, 14)) for each in there] == [range(10, 12), range(12, 14)]


def test_a_started_worker_runs_on_its_core(model: ResolvedModel) -> None:
    cores = sorted(os.sched_getaffinity(0))
    specs = [
        WorkerSpec(model_path=str(model.path), instance=i, tp_rank=0, num_instances=len(cores), tp=1, dtype="float32",
                   device="cpu", threads=1)
        for i in range(len(cores))
    ]  # fmt: skip
    executor = MultiprocExecutor(specs, worker_timeout_s=60)
    executor.start(lambda reply: None, lambda message: None)
    try:
        found = [os.sched_getaffinity(handle.process.pid or 0) for handle in executor.handles]
    finally:
        executor.close()
    assert found == [{core} for core in cores]
