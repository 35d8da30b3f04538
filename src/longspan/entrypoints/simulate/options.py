"""Options of `longspan simulate`, as frozen data. Light to import: the command line's help needs them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from longspan.config import SchedulingConfig, check_count, check_seconds
from longspan.entrypoints.bench.options import check_writable, parse_slo
from longspan.errors import ConfigError
from longspan.files import check_folder_writable
from longspan.simulator.limits import OutputLimit


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulateOptions(SchedulingConfig):
    """What is simulated, and where the results go. Explained by `longspan simulate --help`.

    Who decides, and the knobs, are those of a server, with the same defaults.
    """

    hardware: str = "a800-80g"
    """a100-80g, a800-80g, h100, h200, a40; or sib:FILE, this machine as `longspan profile` measured it."""
    model: str | None = None
    """llama-2-7b, lwm-1m, llama-3-8b, llama-3-70b, qwen2.5-7b, smollm2-135m; or a folder with a config.json, or a
    .gguf file. By default lwm-1m, or what was profiled."""
    instances: int = 4
    """Elastic instances."""
    tp: int = 1
    """Tensor-parallel devices inside each instance."""
    pp: int = 1
    """Pipeline stages of each instance."""
    kv_tokens: int | None = None
    """KV slots of each instance, tokens; by default what memory holds beside the weights."""
    max_model_len: int | None = None
    """Longest prompt and output together, tokens; longer requests are refused."""
    fleet_events: Path | None = None
    """Lose, drain and add instances at the times that this file tells, a line of JSON each:
    {"time": 60.0, "event": "lost", "instance": 3}; events are lost, joined (again, empty) and leaving."""
    mtbf: float | None = None
    """Lose each instance now and then: the mean of the seconds for which it serves, exponentially distributed."""
    mttr: float = 60.0
    """With mtbf, the mean of the seconds until it serves again."""
    output_limit: OutputLimit = "longest"
    """What each request gives as its max_tokens, its true output being hidden: the longest output of the workload,
    its own rounded up to a power of two, or exactly its own."""
    slo: str | None = None
    """What counts as good, in seconds: ttft=0.5,tpot=0.05. By default a TTFT of ttft_slo_factor times what the
    prompt takes alone, though no less than ttft_slo_floor_s, and a TPOT of tpot_slo_s."""
    long_threshold: int = 4096
    """Prompts of so many tokens are long; latencies are given by class."""
    json: Path | None = None
    """Write all results, and every request, to this file."""
    event_log: Path | None = None
    """Write every decision to this file, or where it exists to a new one beside it; `longspan replay` checks it."""
    plot: Path | None = None
    """Draw latencies, groups and KV over time into this folder."""

    def __post_init__(self) -> None:
        SchedulingConfig.__post_init__(self)
        parse_slo(self.slo)
        if self.max_model_len is not None:
            check_count("max_model_len", self.max_model_len, low=2)
        check_count("long_threshold", self.long_threshold, low=0)
        check_seconds("mttr", self.mttr)
        if self.mtbf is not None:
            check_seconds("mtbf", self.mtbf)
            if self.fleet_events is not None:
                raise ConfigError("fleet_events and mtbf both say when instances are lost: give one of them")
        check_writable(self.json, self.event_log)
        if self.plot is not None:
            check_folder_writable(self.plot)
