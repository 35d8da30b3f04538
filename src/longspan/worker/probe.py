"""How fast a worker of this machine is with so many threads, before it is decided how many workers there shall be.

It runs in a process of its own, which loads the model once, or as many of its layers as are more than caches hold, and
runs a few iterations with each number of threads: alone, and as many at once as there are cores for.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from longspan.core.actions import FreeKV, KVRange, RunBatch, Segment
from longspan.distributed.transport import SoleDevice
from longspan.models.config import load_model_config
from longspan.sampling_params import SamplingParams
from longspan.tuning.probing import Probed, ProbeSettings
from longspan.tuning.speed import WorkerSpeed
from longspan.worker.messages import AllocateKV, Forget, Free, Run
from longspan.worker.sampling_state import SamplingState
from longspan.worker.spec import WorkerSpec
from longspan.worker.worker import Worker

_LAYER_BYTES = 256 << 20  # of weights at least, where there are so many: more than caches hold
_SHORT, _LONG, _LATER = 16, 256, 2  # tokens of chunks; and how many long ones are between the first and the last
_REQUESTS, _STEPS = 8, 4
_SLOTS = (_LATER + 2) * _LONG + _REQUESTS * (_SHORT + 4 * _STEPS)
_MOST_S = 5.0
"""Of measuring workers of so many threads: where it takes longer the machine has other things to do."""
_GREEDY = SamplingParams(temperature=0.0)
_BUSY = 0.1
"""Of the cores' time: where others take more, what is measured holds only beside them."""


def measure(settings: ProbeSettings) -> Probed:
    """Return the speeds. Raises ModelError, ConfigError."""
    config = load_model_config(settings.model_path)
    wanted = -(-_LAYER_BYTES * config.num_layers // max(1, settings.weight_bytes))
    layers = range(min(config.num_layers, max(2, wanted)))
    first = Worker(_spec(settings), SoleDevice(), only_layers=layers)
    if first.device.type != "cpu":
        return Probed((), is_busy=False)
    cores, is_busy = len(os.sched_getaffinity(0)), False
    workers = [first] + [
        Worker(_spec(settings), SoleDevice(), model=first.model, only_layers=layers)
        for _ in range(1, cores // min(settings.threads))
    ]
    probes = [_Probe(worker, config.num_layers / len(layers)) for worker in workers]
    speeds = []
    begun, others_s = time.perf_counter(), _others_s()
    for threads in sorted(settings.threads):
        for probe in probes:
            probe.wall_s = 0.0
        try:
            speed = probes[0].speed(threads)
            speeds.append(replace(speed, crowding=_crowding(probes[: cores // threads], threads)))
        except _TooSlow:  # threads that wait for each other suffer most where cores have other work: no such shape then
            is_busy = True
    share = (_others_s() - others_s) / (cores * (time.perf_counter() - begun))
    return Probed(tuple(speeds), is_busy or share > _BUSY)


def _others_s() -> float:
    """Return the processor time that all others have had on the cores that are ours to use; 0 if it is not known."""
    ours = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    try:
        rows = [line.split() for line in Path("/proc/stat").read_text().splitlines() if line.split()[0] in ours]
    except OSError:
        return 0.0
    worked = sum(int(row[place]) for row in rows for place in (1, 2, 3, 6, 7, 8))  # all but idle, and waiting for disks
    return worked / os.sysconf("SC_CLK_TCK") - time.process_time()


def _spec(settings: ProbeSettings) -> WorkerSpec:
    return WorkerSpec(
        model_path=settings.model_path, instance=0, tp_rank=0, num_instances=1, tp=1, dtype=settings.dtype,
        device=settings.device, threads=None, quantization=settings.quantization,
    )  # fmt: skip


def _crowding(probes: Sequence[_Probe], threads: int) -> float:
    """How many times longer a chunk takes while all of them compute one."""
    if len(probes) == 1:
        return 1.0
    alone = probes[0].chunk_s(threads)
    begin = threading.Barrier(len(probes))

    def run(probe: _Probe) -> float:
        torch.set_num_threads(threads)  # it holds for the thread that says it
        begin.wait()
        return probe.chunk_s(threads)

    with ThreadPoolExecutor(len(probes)) as pool:
        together = list(pool.map(run, probes))
    return max(1.0, sum(together) / len(together) / alone)


class _TooSlow(Exception):
    """What was measured would take too long."""


class _Probe:
    """Iterations on one worker. depth: how many times as many layers the whole model has as were loaded."""

    def __init__(self, worker: Worker, depth: float) -> None:
        self.worker = worker
        self.depth = depth
        self.num_batches = self.num_residences = 0
        self.residences: dict[str, int] = {}
        self.wall_s = 0.0
        worker.execute(AllocateKV(_SLOTS))

    def speed(self, threads: int) -> WorkerSpeed:
        torch.set_num_threads(threads)
        self._chunk("warm", 0, _SHORT)
        self._free("warm")
        short_s = min(self._alone(_SHORT) for _ in range(3))
        times = [self._chunk("long", _LONG * place, _LONG) for place in range(_LATER + 2)]
        self._free("long")
        chunk_s = min(times[0], self._alone(_LONG))
        lone, many = self._decodes(1), self._decodes(_REQUESTS)
        return WorkerSpeed(
            threads=threads, decode_s=lone, num_decodes=_REQUESTS, decodes_s=many, short_tokens=_SHORT,
            short_s=short_s, chunk_tokens=_LONG, chunk_s=chunk_s, context_tokens=_LONG * (_LATER + 1),
            later_chunk_s=max(times[-1], chunk_s),
        )  # fmt: skip

    def chunk_s(self, threads: int) -> float:
        torch.set_num_threads(threads)
        return min(self._alone(_LONG) for _ in range(2))

    def _alone(self, tokens: int) -> float:
        seconds = self._chunk("alone", 0, tokens)
        self._free("alone")
        return seconds

    def _chunk(self, name: str, start: int, length: int) -> float:
        return self._run([self._segment(name, start, length)], emits=1)

    def _decodes(self, requests: int) -> float:
        """Of a step of so many requests with a little context: the quickest."""
        names = [f"decode {number}" for number in range(requests)]
        self._run([self._segment(name, 0, _SHORT) for name in names], emits=requests)
        steps = [
            self._run([self._segment(name, place, 1) for name in names], requests)
            for place in range(_SHORT, _SHORT + _STEPS)
        ]
        for name in names:
            self._free(name)
        return min(steps)

    @torch.inference_mode()
    def _run(self, segments: Sequence[Segment], emits: int) -> float:
        """Return the seconds that the whole model would take."""
        self.num_batches += 1
        command = Run(
            RunBatch(self.num_batches, (0,), tuple(segments)),
            {s.request_id: self._token_ids(s.length) for s in segments if not s.start or s.length > 1},
            {s.request_id: SamplingState.start(_GREEDY, 0) for s in segments},
        )
        begin = time.perf_counter()
        self.worker.execute(command)
        wall = time.perf_counter() - begin
        self.wall_s += wall
        if self.wall_s > _MOST_S:
            raise _TooSlow
        if self.depth == 1.0:
            return wall
        head_s = min(wall, self._head_s(emits))
        return head_s + self.depth * (wall - head_s)

    @torch.inference_mode()
    def _head_s(self, emits: int) -> float:
        """Seconds of what is there once, however many layers there are."""
        model = self.worker.model
        x_ED = torch.zeros((emits, model.config.hidden_size))
        begin = time.perf_counter()
        model.logits(x_ED, self.worker.tp)
        return time.perf_counter() - begin

    def _token_ids(self, length: int) -> bytes:
        return (np.arange(length, dtype="<i4") % self.worker.config.vocab_size).tobytes()

    def _free(self, name: str) -> None:
        self.worker.execute(Free(FreeKV(self._residence(name), (0,))))
        self.worker.execute(Forget(name))
        del self.residences[name]

    def _segment(self, name: str, start: int, length: int) -> Segment:
        residence = self._residence(name)
        context = ((0, start),) if start else ()
        stored = (KVRange(0, start, start + length),)
        return Segment(name, start, length, (0,), stored, context, residence=residence)

    def _residence(self, name: str) -> int:
        """Return a number of its own."""
        if name not in self.residences:
            self.num_residences += 1
            self.residences[name] = self.num_residences
        return self.residences[name]
