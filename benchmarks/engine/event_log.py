"""What an event log costs: bytes for each request, and CPU time for each record, in the formats of version 1 and 2.

    python -m benchmarks.engine.event_log --json event_log

Both are of the same runs, simulated: two A100 with Llama-2-7B, prompts of 50 to 1,500 tokens, answers of 200, at three
rates (one request at a time, a few, many). Requests have ids as long as the server's, times are whole nanoseconds as
an engine's clock gives them. CPU time is all of the process's, the thread that writes included; both sides write the
records of a run once in each round, in turn.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.common import arguments, interleaved, paired_ratio, save, say
from longspan.config import SchedulerConfig
from longspan.core.actions import Action, RunBatch
from longspan.core.decision import Decision
from longspan.core.events import Event
from longspan.metrics.event_log import EventLogWriter, read_event_log
from longspan.profiler.simulated import fit_simulated
from longspan.simulator.cost import IterationCost
from longspan.simulator.fleet import Fleet
from longspan.simulator.hardware import known_machine
from longspan.simulator.models import known_model
from longspan.simulator.simulator import Simulator
from longspan.workload.traces import TraceRequest

OPTIONS = (
    ("policies", "elastic_fcfs,medha", "names, joined by commas"),
    ("rates", "0.3,4,16", "requests a second, joined by commas"),
    ("requests", 300, "how many"),
    ("rounds", 7, "of measuring CPU time"),
    ("json", "", "name of the result to save"),
)

Record = tuple[float, Event, Sequence[Action], Sequence[Decision]]


class Recorder:
    """An event log in memory, as a server would have it."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self._encoder = msgspec.json.Encoder()
        self._decoder = msgspec.json.Decoder(tuple[float, Event, list[Action], tuple[Decision, ...]])
        self._ids: dict[bytes, bytes] = {}

    def write(self, now: float, event: Event, actions: Sequence[Action], why: Sequence[Decision]) -> None:
        text = self._encoder.encode((round(now, 9), event, actions, why))
        for short, long in self._names(event).items():
            text = text.replace(short, long)
        self.records.append(self._decoder.decode(text))

    def _names(self, event: Event) -> dict[bytes, bytes]:
        request_id = getattr(event, "request_id", None)
        if request_id is not None:
            digits = random.Random(request_id).randbytes(20).hex()
            long = f"cmpl-{digits[:32]}-{digits[32:]}-0"
            self._ids[f'"{request_id}"'.encode()] = f'"{long}"'.encode()
            self._ids[f'tokens of {request_id}"'.encode()] = f'tokens of {long}"'.encode()
        return self._ids


class Version1Writer:
    """As it was: an object for each line, everything in full, written by whoever decides."""

    def __init__(self, path: Path, config: SchedulerConfig, cost_model: Any) -> None:
        self._file = path.open("wb", buffering=1 << 16)
        self._encoder = msgspec.json.Encoder()
        self._flushed_at = time.monotonic()
        self._write_line({"version": 1, "config": config, "cost_model": cost_model})

    def write(self, now: float, event: Event, actions: Sequence[Action], why: Sequence[Decision] = ()) -> None:
        content = {"now": now, "event": event, "actions": list(actions)}
        self._write_line(content | {"why": why} if why else content)
        if time.monotonic() - self._flushed_at >= 1.0:
            self._file.flush()
            self._flushed_at = time.monotonic()

    def close(self) -> None:
        self._file.close()

    def _write_line(self, content: dict[str, Any]) -> None:
        self._file.write(self._encoder.encode(content) + b"\n")


def main() -> None:
    options = arguments("Measure what an event log costs.", OPTIONS)
    results = [
        measure(policy, float(rate), options)
        for policy in options.policies.split(",")
        for rate in options.rates.split(",")
    ]
    if options.json:
        save(options.json, {"runs": results})


def measure(policy: str, rate: float, options: Any) -> dict[str, Any]:
    fleet = Fleet(machine=known_machine("a100-80g"), model=known_model("llama-2-7b"), instances=2)
    config = SchedulerConfig(num_instances=2, kv_tokens=60_000, policy=policy)
    cost = IterationCost(fleet)
    cost_model = fit_simulated(cost, config, fleet.model.max_model_len)
    recorder = Recorder()
    log: Any = recorder
    Simulator(config, cost, cost_model=cost_model, event_log=log).run(requests(options.requests, rate))
    records = recorder.records
    issued = [action for _, _, actions, _ in records for action in actions if isinstance(action, RunBatch)]
    batches = [len(action.segments) for action in issued]

    with tempfile.TemporaryDirectory() as folder:
        sizes: dict[str, int] = {}

        def version_1(number: int) -> float:
            path = Path(folder, f"v1-{number}")
            return write(Version1Writer(path, config, cost_model), path)

        def version_2(number: int, suffix: str = "") -> float:
            path = Path(folder, f"v2-{number}{suffix}")
            return write(EventLogWriter(path, config, cost_model), path)

        def write(writer: Any, path: Path) -> float:
            begin = time.process_time()
            for record in records:
                writer.write(*record)
            writer.close()
            seconds = time.process_time() - begin
            sizes[path.name.partition("-")[0] + path.suffix] = path.stat().st_size
            return seconds / len(records)

        cpu = interleaved({"v1": version_1, "v2": version_2}, options.rounds)
        version_2(0, ".gz")
        again = [(r.now, r.event, list(r.actions), r.why) for r in read_event_log(Path(folder, "v2-0"))]
        assert again == [(now, event, list(actions), tuple(why)) for now, event, actions, why in records]
    found = {
        "policy": policy, "rate": rate, "num_requests": options.requests, "num_records": len(records),
        "mean_batch": statistics.fmean(batches),
        "bytes_per_request": {name: size / options.requests for name, size in sizes.items()},
        "cpu_us_per_record": {name: 1e6 * statistics.median(seconds) for name, seconds in cpu.items()},
        "cpu_ratio": paired_ratio(cpu["v2"], cpu["v1"]),
    }  # fmt: skip
    per_request, cpu_us = found["bytes_per_request"], found["cpu_us_per_record"]
    say(
        f"{policy:>14} at {rate:g}/s, {found['mean_batch']:.1f} requests a batch: "
        f"{per_request['v1'] / 1e3:.1f} kB a request, now {per_request['v2'] / 1e3:.2f} "
        f"({per_request['v2.gz'] / 1e3:.2f} as .gz): {per_request['v1'] / per_request['v2']:.0f} times smaller; "
        f"{cpu_us['v1']:.1f} us of CPU a record, now {cpu_us['v2']:.1f}: {found['cpu_ratio']:.2f} times"
    )
    return found


def requests(number: int, rate: float) -> list[TraceRequest]:
    draw, now, drawn = random.Random(1), 0.0, []
    for _ in range(number):
        now += draw.expovariate(rate)
        drawn.append(TraceRequest(arrived_at_s=now, num_prompt_tokens=draw.randint(50, 1500), num_output_tokens=200))
    return drawn


if __name__ == "__main__":
    main()
