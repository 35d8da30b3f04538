"""Options of `longspan simulate`, as frozen data. Light to import: the command line's help needs them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from longspan.config import SchedulingConfig, check_count
from longspan.entrypoints.bench.options import check_writable, parse_slo
from longspan.files import check_folder_writable
from longspan.simulator.limits import OutputLimit


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulateOptions(SchedulingConfig):
    """What is simulated, and where the results go. Explained by `longspan simulate --help`.

    Who decides, and the knobs, are those of a server, with the same defaults.
    """

    hardware: str = "a800-80g"
    model: str | None = None
    instances: int = 4
    tp: int = 1
    pp: int = 1
    kv_tokens: int | None = None
    max_model_len: int | None = None
    output_limit: OutputLimit = "longest"
    slo: str | None = None
    long_threshold: int = 4096
    json: Path | None = None
    event_log: Path | None = None
    plot: Path | None = None

    def __post_init__(self) -> None:
        SchedulingConfig.__post_init__(self)
        parse_slo(self.slo)
        if self.max_model_len is not None:
            check_count("max_model_len", self.max_model_len, low=2)
        check_count("long_threshold", self.long_threshold, low=0)
        check_writable(self.json, self.event_log)
        if self.plot is not None:
            check_folder_writable(self.plot)
