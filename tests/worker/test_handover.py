"""From one pipeline stage to the next: the first tells that it is about to be free before its last layer."""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from longspan.core.actions import KVRange, RunBatch, Segment
from longspan.distributed.local import LocalTransport, LocalWorld
from longspan.distributed.transport import Exchange, NothingToWaitFor, SoleDevice, Transport
from longspan.executor.inproc import InprocExecutor
from longspan.sampling_params import SamplingParams
from longspan.worker.messages import AllocateKV, BatchDone, FirstStageDone, Reply, Run
from longspan.worker.sampling_state import SamplingState
from longspan.worker.spec import WorkerSpec
from longspan.worker.worker import Worker
from tests.models.tiny import heads, write_tiny_engine_model

SLOTS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers, of sizes that our own kernels take."""
    path = tmp_path_factory.mktemp("model")
    sizes = {"vocab_size": 101, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4}
    write_tiny_engine_model(path, LlamaConfig(**sizes, **heads(4, 2, 16)))
    return path


class Taken:
    """The transport to a stage that takes at once what is handed on to it."""

    rank = 0

    def exchange(self, sends: Sequence[object], receives: Sequence[object]) -> Exchange:
        return NothingToWaitFor()

    def shares_memory(self, other: int) -> bool:
        return False


def stage(
    folder: Path,
    number: int,
    transport: Transport,
    layers: tuple[int, int] = (2, 2),
    tell: Callable[[Reply], None] = lambda reply: None,
) -> Worker:
    spec = WorkerSpec(
        model_path=str(folder), instance=0, tp_rank=0, num_instances=1, tp=1, stage=number, pp=2, pp_layers=layers,
        dtype="float32", device="cpu", threads=1,
    )  # fmt: skip
    worker = Worker(spec, transport, tell=tell)
    worker.execute(AllocateKV(SLOTS))
    return worker


def prompt(batch_id: int, group: tuple[int, ...] = (0,), length: int = 3) -> Run:
    segment = Segment(f"r{batch_id}", 0, length, (0,), (KVRange(0, 0, length),), residence=batch_id)
    sampling = {segment.request_id: SamplingState.start(SamplingParams(temperature=0.0), seed=0)}
    ids = torch.arange(1, length + 1, dtype=torch.int32).numpy().tobytes()
    return Run(RunBatch(batch_id, group, (segment,)), {segment.request_id: ids}, sampling)


def computed(worker: Worker) -> list[bool]:
    """Tell of each layer whether there is KV of it."""
    assert worker.runner is not None
    pool = worker.runner.pool
    return [bool(pool.layer(layer)[0].any()) for layer in range(len(worker.stage.layers))]


@pytest.mark.parametrize("length", [3, 1])
@pytest.mark.parametrize("layers", [(1, 3), (2, 2), (3, 1)])
def test_the_first_stage_tells_before_its_last_layer(folder: Path, layers: tuple[int, int], length: int) -> None:
    """It tells once; of a single token, whose layers may run in one call, perhaps before all of them."""
    told: list[tuple[Reply, list[bool]]] = []
    first = stage(folder, 0, Taken(), layers, lambda reply: told.append((reply, computed(first))))
    assert first.execute(prompt(7, length=length)) is None, "it has told, and does not answer again"
    ((reply, layers_then),) = told
    assert reply == FirstStageDone(7, 0)
    assert not layers_then[-1]
    assert all(layers_then[:-1]) or length == 1
    assert all(computed(first))


def test_only_the_first_stage_tells(folder: Path) -> None:
    """And nobody has read by then: the last stage has not begun."""
    world = LocalWorld(2, tp_size=1)
    told: queue.SimpleQueue[Reply] = queue.SimpleQueue()
    others: list[Reply] = []
    first = stage(folder, 0, LocalTransport(world, 0), tell=told.put)
    last = stage(folder, 1, LocalTransport(world, 1), tell=others.append)

    def serve() -> None:
        for number in range(2):
            first.execute(prompt(number))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    for number in range(2):
        assert told.get(timeout=60) == FirstStageDone(number, 0)
        assert isinstance(last.execute(prompt(number)), BatchDone)
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert told.empty() and not others


def test_a_stage_that_has_told_may_still_fail(folder: Path) -> None:
    told: list[Reply] = []
    alone = stage(folder, 0, SoleDevice(), tell=told.append)  # there is nobody to hand on to
    with pytest.raises(AssertionError):
        alone.execute(prompt(0))
    assert told == [FirstStageDone(0, 0)]


def test_one_device_of_each_instance_tells_with_rows_or_without(folder: Path) -> None:
    """The second instance is in the group, and has nothing to compute."""
    pp, tp, group = 3, 2, (0, 1)
    specs = [
        WorkerSpec(
            model_path=str(folder), instance=instance, tp_rank=rank, num_instances=len(group), tp=tp, stage=number,
            pp=pp, pp_layers=(2, 1, 1), dtype="float32", device="cpu", threads=1,
        )
        for instance in group for number in range(pp) for rank in range(tp)
    ]  # fmt: skip
    executor = InprocExecutor(specs)
    replies: queue.SimpleQueue[object] = queue.SimpleQueue()
    on_failure: Callable[[str], None] = replies.put
    executor.start(replies.put, on_failure)
    try:
        executor.allocate_kv(SLOTS)
        for instance in group:
            executor.submit(instance, prompt(0, group))
        came = [replies.get(timeout=60) for _ in range(2 * len(group))]
    finally:
        executor.close()
    assert replies.empty()
    kinds = Counter((type(reply), getattr(reply, "instance", None)) for reply in came)
    assert kinds == Counter((kind, instance) for kind in (FirstStageDone, BatchDone) for instance in group), came
