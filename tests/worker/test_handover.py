"""From one pipeline stage to the next: a stage is told free when it has computed, not when its next one has read."""

from __future__ import annotations

import queue
import threading
from pathlib import Path

import torch

from longspan.core.actions import KVRange, RunBatch, Segment
from longspan.distributed.local import LocalTransport, LocalWorld
from longspan.sampling_params import SamplingParams
from longspan.worker.messages import AllocateKV, BatchDone, FirstStageDone, Reply, Run, WorkerSpec
from longspan.worker.sampling_state import SamplingState
from longspan.worker.worker import Worker
from tests.models.tiny import write_random_model
from tests.models.tokenizers_zoo import byte_level


def stage(folder: Path, number: int, world: LocalWorld) -> Worker:
    spec = WorkerSpec(
        model_path=str(folder), instance=0, tp_rank=0, num_instances=1, tp=1, stage=number, pp=2, pp_layers=(1, 1),
        dtype="float32", device="cpu", threads=1,
    )  # fmt: skip
    worker = Worker(spec, LocalTransport(world, spec.rank))
    worker.execute(AllocateKV(8))
    return worker


def prompt(batch_id: int) -> Run:
    segment = Segment(f"r{batch_id}", 0, 3, (0,), (KVRange(0, 0, 3),), residence=batch_id)
    sampling = {segment.request_id: SamplingState.start(SamplingParams(temperature=0.0), seed=0)}
    ids = torch.tensor([1, 2, 3], dtype=torch.int32).numpy().tobytes()
    return Run(RunBatch(batch_id, (0,), (segment,)), {segment.request_id: ids}, sampling)


def test_a_stage_is_told_free_before_the_next_one_has_read(tmp_path: Path) -> None:
    folder = write_random_model(tmp_path, byte_level(), 400)
    world = LocalWorld(2, tp_size=1)
    first, last = stage(folder, 0, world), stage(folder, 1, world)
    replies: queue.SimpleQueue[Reply | None] = queue.SimpleQueue()

    def serve() -> None:
        for number in range(2):
            replies.put(first.execute(prompt(number)))
            first.settle()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert replies.get(timeout=60) == FirstStageDone(0, 0)  # nobody has read: the last stage has not begun
    assert isinstance(last.execute(prompt(0)), BatchDone)
    assert replies.get(timeout=60) == FirstStageDone(1, 0)
    assert isinstance(last.execute(prompt(1)), BatchDone)
    thread.join(timeout=60)
    assert not thread.is_alive()
