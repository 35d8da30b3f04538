"""Void work leaves no trace on a worker: neither in its pool, nor in what follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longspan.core.actions import KVRange, MigrateKV, RunBatch, Segment
from longspan.distributed.local import LocalTransport, LocalWorld
from longspan.native.work import CurrentWork
from longspan.sampling_params import SamplingParams
from longspan.worker.messages import AllocateKV, BatchDone, Cancel, Migrate, MigrationDone, Run, Settle, WorkLeft
from longspan.worker.sampling_state import SamplingState
from longspan.worker.spec import WorkerSpec
from longspan.worker.worker import Worker
from tests.threads import in_threads
from tests.worker.test_handover import folder  # noqa: F401

SLOTS, REQUESTS = 40, 3


def worker(folder: Path, instance: int = 0, world: LocalWorld | None = None) -> Worker:  # noqa: F811
    spec = WorkerSpec(
        model_path=str(folder), instance=instance, tp_rank=0, num_instances=2, tp=1, dtype="float32", device="cpu",
        threads=1,
    )  # fmt: skip
    made = Worker(spec, LocalTransport(world or LocalWorld(2, tp_size=1), instance), work=CurrentWork())
    made.execute(AllocateKV(SLOTS))
    return made


@dataclass
class Requests:
    """What an engine knows of a few requests that one instance runs: by number, their tokens, and what is stored."""

    tokens: list[list[int]]
    stored: list[int]

    def batch(self, number: int, lengths: Sequence[int]) -> Run | None:
        """So many tokens of each request more; all that is known, and not stored, emits the next."""
        segments, ids, sampling = [], {}, {}
        for i, wanted in enumerate(lengths):
            start, known = self.stored[i], len(self.tokens[i])
            length = min(wanted, known - start)
            if length:
                end = start + length
                context = ((0, start),) if start else ()
                emits = end == known
                segments.append(
                    Segment(f"r{i}", start, length, (0,), (KVRange(0, start, end),), context, emits, residence=i)
                )
                ids[f"r{i}"] = torch.tensor(self.tokens[i][start:end], dtype=torch.int32).numpy().tobytes()
                if emits:
                    sampling[f"r{i}"] = SamplingState.start(SamplingParams(temperature=0.0), seed=0)
        return Run(RunBatch(number, (0,), tuple(segments)), ids, sampling, number=number) if segments else None

    def take(self, run: Run, done: BatchDone) -> None:
        for segment in run.batch.segments:
            number = int(segment.request_id[1:])
            self.stored[number] = segment.end
            if segment.emits:
                self.tokens[number].append(done.tokens[segment.request_id].token_id)


def trace(of: Worker) -> tuple[list[int], dict[int, dict[int, int]]]:
    """The free slots, in order, and by residence the slot of each position."""
    assert of.runner is not None
    pool = of.runner.pool
    held = {
        name: dict(zip(holding.positions.tolist(), holding.slots.tolist(), strict=True))
        for name, holding in pool.holdings.items()
    }
    return pool.free_slots.stack[: pool.free_slots.size].tolist(), held


LENGTHS = st.lists(st.integers(0, 4), min_size=REQUESTS, max_size=REQUESTS)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(LENGTHS, st.booleans()), min_size=1, max_size=8), twice=st.booleans())
def test_what_is_undone_has_never_been(
    folder: Path, steps: list[tuple[list[int], bool]], twice: bool  # noqa: F811
) -> None:  # fmt: skip
    """Batches of random segments, some of which become void when they have been done, and come again."""
    disturbed, undisturbed = worker(folder), worker(folder)
    requests = Requests([[1, 2, 3, 4, 5, 6][: 4 + i] for i in range(REQUESTS)], [0] * REQUESTS)
    number = 0
    for lengths, cancelled in steps:
        number += 1
        run = requests.batch(number, lengths)
        if run is None:
            continue
        if cancelled:
            before = trace(disturbed)
            assert isinstance(disturbed.execute(run), BatchDone)
            for _ in range(1 + twice):
                assert disturbed.execute(Cancel((number,))) is None
            assert trace(disturbed) == before
            number += 1
            run = requests.batch(number, lengths)
            assert run is not None
        done, expected = disturbed.execute(run), undisturbed.execute(run)
        assert isinstance(done, BatchDone) and isinstance(expected, BatchDone)
        assert done.tokens == expected.tokens and trace(disturbed) == trace(undisturbed)
        requests.take(run, done)


def test_void_work_does_not_begin(folder: Path) -> None:  # noqa: F811
    """The word comes by another thread, before what waits."""
    alone = worker(folder)
    requests = Requests([[1, 2, 3]] * REQUESTS, [0] * REQUESTS)
    before = trace(alone)
    run = requests.batch(7, [2, 0, 0])
    assert run is not None
    alone.work.cancel([7])
    assert alone.execute(run) == WorkLeft(7)
    alone.execute(Cancel((7,)))
    assert trace(alone) == before
    assert isinstance(alone.execute(run), BatchDone), "the number is nothing special any more"


@pytest.mark.parametrize("settled", [True, False])
def test_a_migration_is_sure_only_when_it_is_settled(folder: Path, settled: bool) -> None:  # noqa: F811
    """Until then its source has all of it still, and can go on as if nothing had moved; its target gives it up."""
    world = LocalWorld(2, tp_size=1)
    source, target = worker(folder, 0, world), worker(folder, 1, world)
    requests = Requests([[1, 2, 3, 4, 5], [6, 7], [8]], [0] * REQUESTS)
    run = requests.batch(1, [5, 2, 1])
    assert run is not None
    source.execute(run)
    before = trace(source), trace(target)
    action = MigrateKV(0, "r0", 0, 1, ((1, 3), (4, 5)), residence=0)

    def move(rank: int) -> None:
        assert (source, target)[rank].execute(Migrate(action, 2)) == MigrationDone(0, rank)

    in_threads(move, range(2), world.give_up, deadlock_s=60)
    assert trace(source) == before[0]
    if settled:
        source.execute(Settle(2))
        assert set(trace(source)[1][0]) == {0, 3} and set(trace(target)[1][0]) == {1, 2, 4}
    else:
        for each in (source, target):
            each.execute(Cancel((2,)))
        assert (trace(source), trace(target)) == before
