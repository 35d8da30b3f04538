"""Options of `longspan simulate`, as frozen data. Light to import: the command line's help needs them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from longspan.config import check_count
from longspan.entrypoints.bench.options import check_writable, parse_slo
from longspan.files import check_folder_writable
from longspan.simulator.limits import OutputLimit


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulateOptions:
    """What is simulated, and where the results go. Explained by `longspan simulate --help`.

    Fields that `SchedulerConfig` has too go there.
    """

    hardware: str = "a800-80g"
    model: str | None = None
    instances: int = 4
    tp: int = 1
    pp: int = 1
    policy: str = "elastic_fcfs"
    kv_tokens: int | None = None
    max_model_len: int | None = None
    output_limit: OutputLimit = "longest"
    max_waiting: int = 1_000_000
    max_batch_tokens: int = 8192
    max_batch_requests: int = 256
    max_requests_per_master: int = 64
    min_tokens_per_instance: int = 64
    decode_headroom: int = 128
    lookahead: bool = True
    ttft_slo_factor: float = 1.5
    ttft_slo_floor_s: float = 0.5
    tpot_slo_s: float = 0.05
    chunk_size: int = 512
    kvp_tokens_per_shard: int | None = None
    slo: str | None = None
    long_threshold: int = 4096
    json: Path | None = None
    event_log: Path | None = None
    plot: Path | None = None

    def __post_init__(self) -> None:
        parse_slo(self.slo)
        if self.max_model_len is not None:
            check_count("max_model_len", self.max_model_len, low=2)
        check_count("long_threshold", self.long_threshold, low=0)
        check_writable(self.json, self.event_log)
        if self.plot is not None:
            check_folder_writable(self.plot)
