"""What came to a server, as its event log has it, is a trace."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from longspan.config import SchedulerConfig
from longspan.entrypoints.bench.options import ArrivalOptions, LengthOptions
from longspan.entrypoints.bench.requests import make_requests
from longspan.entrypoints.simulate.fleet import make_fleet
from longspan.errors import TraceError
from longspan.metrics.event_log import EventLogWriter
from longspan.service_level import ServiceLevel
from longspan.simulator.cost import IterationCost
from longspan.simulator.simulator import Simulator
from longspan.workload.logged import is_event_log, read_logged
from longspan.workload.traces import TraceRequest

CAME = [
    TraceRequest(0.0, 300, 5), TraceRequest(0.25, 4000, 2, service=ServiceLevel(ttft_s=3.0)), TraceRequest(0.5, 20, 1)
]  # fmt: skip


def simulated(path: Path) -> Path:
    cost = IterationCost(make_fleet("a100-80g", "llama-2-7b", 2, 1, 1))
    config = SchedulerConfig(num_instances=2, kv_tokens=16_384, policy="elastic_fcfs")
    with EventLogWriter(path, config, run="a run", waits=True) as log:
        Simulator(config, cost, event_log=log).run(CAME)
        written = log.path
    assert written is not None
    return written


@pytest.mark.parametrize("name", ["events.jsonl", "events.jsonl.gz"])
def test_an_event_log_is_a_trace(tmp_path: Path, name: str) -> None:
    path = simulated(tmp_path / name)
    assert is_event_log(path)
    assert [(r.num_prompt_tokens, r.num_output_tokens, r.service) for r in read_logged(path)] == [
        (r.num_prompt_tokens, r.num_output_tokens, r.service) for r in CAME
    ]
    assert [r.arrived_at_s for r in read_logged(path)] == pytest.approx([r.arrived_at_s for r in CAME])


def test_commands_take_it_for_a_trace(tmp_path: Path) -> None:
    path = simulated(tmp_path / "events.jsonl")
    found = make_requests(LengthOptions(trace=(path,)), ArrivalOptions())
    assert [request.num_prompt_tokens for request in found] == [300, 4000, 20]


def test_other_files_are_none(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"timestamp": 1, "input_length": 2, "output_length": 3, "hash_ids": [4]}\n')
    assert not is_event_log(trace)
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(b'{"version":3,' * 100)[:20])
    assert not is_event_log(cut)
    assert not is_event_log(tmp_path / "nothing")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"version":3}\n')
    with pytest.raises(TraceError):
        read_logged(broken)
