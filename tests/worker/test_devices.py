"""Which device a worker has, and what it knows of a device that works off later what it is handed."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from longspan.core.actions import KVRange, RunBatch, Segment
from longspan.distributed import stream
from longspan.distributed.stream import Event
from longspan.distributed.transport import SoleDevice
from longspan.errors import ConfigError
from longspan.executor.inproc import InprocExecutor
from longspan.sampling_params import SamplingParams
from longspan.worker import worker as worker_module
from longspan.worker.device import resolve_device, workers_on_device
from longspan.worker.messages import AllocateKV, BatchDone, Run
from longspan.worker.sampling_state import SamplingState
from longspan.worker.spec import WorkerSpec
from longspan.worker.worker import Progress, Worker
from tests.models.tiny import write_tiny_model

CUDA = torch.device("cuda", 0)


def spec(path: Path | str = "none", rank: int = 0, instances: int = 1, tp: int = 1, **more: object) -> WorkerSpec:
    settings = {"dtype": "float32", "device": "cpu", "threads": 1} | more
    return WorkerSpec(
        model_path=str(path), instance=rank // tp, tp_rank=rank % tp, num_instances=instances, tp=tp,
        **settings,
    )  # type: ignore[arg-type]  # fmt: skip


class Gpus:
    """So many GPUs, for `torch.cuda`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("gpus", "instances", "tp", "shares", "places"),
    [
        (4, 4, 1, False, [0, 1, 2, 3]),
        (8, 2, 2, False, [0, 1, 2, 3]),
        (1, 4, 1, True, [0, 0, 0, 0]),
        (8, 2, 1, True, [0, 0]),  # the second instance is where its weights are
        (8, 2, 2, True, [0, 1, 0, 1]),
        (1, 2, 2, True, [0, 0, 0, 0]),
    ],
)
def test_each_rank_is_where_its_weights_are(
    monkeypatch: pytest.MonkeyPatch, gpus: int, instances: int, tp: int, shares: bool, places: list[int]
) -> None:
    Gpus(monkeypatch, gpus)
    for device in ("cuda", "auto"):
        specs = [
            spec(rank=r, instances=instances, tp=tp, device=device, shares_devices=shares) for r in range(len(places))
        ]
        assert [resolve_device(s).index for s in specs] == places
        assert workers_on_device(specs[0], CUDA) == max(places.count(place) for place in places)


@pytest.mark.parametrize("device", ["cuda", "auto"])
@pytest.mark.parametrize(("instances", "tp", "found"), [(2, 1, 1), (2, 4, 7), (9, 1, 8)])
def test_more_ranks_than_gpus_are_refused(
    monkeypatch: pytest.MonkeyPatch, device: str, instances: int, tp: int, found: int
) -> None:
    Gpus(monkeypatch, found)
    for rank in range(instances * tp):
        with pytest.raises(ConfigError, match=f"need {instances * tp} GPUs, but here are {found}"):
            resolve_device(spec(rank=rank, instances=instances, tp=tp, device=device))
    assert resolve_device(spec(instances=instances, tp=tp, device="cpu")).type == "cpu"


class LateEvent:
    """Passes when it is told to, or waited for."""

    def __init__(self, owner: LateStream, number: int) -> None:
        self.owner = owner
        self.number = number
        self.passed = False

    def done(self) -> bool:
        return self.passed

    def wait(self) -> None:
        self.owner.waited.append(self.number)
        for event in self.owner.events[: self.number + 1]:
            event.passed = True

    def seconds_since(self, earlier: Event) -> float:
        assert isinstance(earlier, LateEvent) and self.passed and earlier.passed
        return float(self.number - earlier.number)


class LateStream:
    """A device that is behind: events pass one by one. threads: that have entered it."""

    host_computes = False

    def __init__(self) -> None:
        self.events: list[LateEvent] = []
        self.waited: list[int] = []
        self.threads: list[int] = []

    def enter(self) -> None:
        self.threads.append(threading.get_ident())

    def record(self) -> Event:
        assert threading.get_ident() in self.threads, "not this thread's device"
        self.events.append(LateEvent(self, len(self.events)))
        return self.events[-1]

    def wait_for(self, event: Event) -> None:
        assert isinstance(event, LateEvent)


def spin() -> None:
    """Processor time of this thread, enough to show."""
    begin = time.thread_time()
    while time.thread_time() < begin + 0.25:
        pass


def test_progress_is_what_the_device_has_done() -> None:
    late = LateStream()
    late.enter()
    progress = Progress(late)
    for _ in range(3):
        progress.step()
    spin()
    assert progress.value() == 0
    late.events[0].passed = True
    assert progress.value() == 1
    late.events[2].passed = True  # a stream passes them in order
    late.events[1].passed = True
    assert progress.value() == 3


def test_progress_of_a_cpu_is_its_layers_and_its_time() -> None:
    progress = Progress(stream.HostStream())
    before = progress.value()
    progress.step()
    assert progress.value() > before
    before = progress.value()
    spin()
    assert progress.value() > before


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"), 256)


@pytest.mark.parametrize("emits", [True, False])
def test_a_batch_is_done_when_the_device_is(tiny: Path, emits: bool) -> None:
    """And its time is the device's, whether or not a token has come back from there."""
    late = LateStream()
    worker = Worker(spec(tiny), SoleDevice(), stream=late)
    assert late.waited, "the weights are there before other threads use them"
    worker.execute(AllocateKV(64))
    late.waited.clear()
    first = len(late.events)
    segment = Segment("r", 0, 5, (0,), (KVRange(0, 0, 5),), emits=emits)
    states = {"r": SamplingState.start(SamplingParams(temperature=0.0), seed=0)}
    ids = torch.arange(5, dtype=torch.int32).numpy().tobytes()
    done = worker.execute(Run(RunBatch(0, (0,), (segment,)), {"r": ids}, states))
    assert isinstance(done, BatchDone) and bool(done.tokens) == emits
    assert late.waited[-1] == len(late.events) - 1, "the host has waited for the end"
    assert done.model_s == len(late.events) - 1 - first


@pytest.mark.parametrize(("instances", "tp"), [(3, 1), (2, 2)])
def test_every_thread_enters_a_stream_of_its_own(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, instances: int, tp: int
) -> None:
    """A batch over all instances runs through them; a stream that its thread has not entered refuses to record."""
    made: list[LateStream] = []

    def make(device: torch.device) -> LateStream:
        made.append(LateStream())
        return made[-1]

    monkeypatch.setattr(stream, "stream_on", make)
    monkeypatch.setattr(worker_module, "stream_on", make)
    specs = [spec(tiny, rank, instances, tp) for rank in range(instances * tp)]
    executor = InprocExecutor(specs)
    replies: queue.SimpleQueue[object] = queue.SimpleQueue()
    on_failure: Callable[[str], None] = replies.put
    executor.start(replies.put, on_failure)
    try:
        executor.allocate_kv(64)
        group = tuple(range(instances))
        kept = tuple(KVRange(i, 7 * i, 7 * i + 7) for i in group)
        segment = Segment("r", 0, 7 * instances, group, kept)
        ids = torch.arange(7 * instances, dtype=torch.int32).numpy().tobytes()
        states = {"r": SamplingState.start(SamplingParams(temperature=0.0), seed=0)}
        for instance in group:
            executor.submit(instance, Run(RunBatch(0, group, (segment,)), {"r": ids}, states))
        done = [replies.get() for _ in group]
        assert all(isinstance(reply, BatchDone) for reply in done), done
    finally:
        executor.close()
    serving = [s for s in made if s.waited and len(set(s.threads)) == 1 and len(s.events) > 2]
    assert len({s.threads[0] for s in serving}) >= instances * tp
    assert replace(specs[0], shares_devices=True) == executor.specs[0]
