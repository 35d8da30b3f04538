"""Options of `longspan plan`, as frozen data. Light to import: the command line's help needs them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from longspan.config import MOST_INSTANCES, SchedulingKnobs, check_count
from longspan.entrypoints.bench.options import check_writable, parse_slo
from longspan.errors import ConfigError
from longspan.simulator.limits import OutputLimit

MOST_JOBS = 256

Question = Literal["rate", "devices"]


class Split(NamedTuple):
    """How an instance is made of devices."""

    tp: int
    pp: int

    @property
    def devices(self) -> int:
        return self.tp * self.pp


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions(SchedulingKnobs):
    """Explained by `longspan plan --help`. The knobs are those of a server, with the same defaults."""

    find: Question = "rate"
    """The highest rate that all devices bear, or the fewest devices for the rate given."""
    hardware: str = "a800-80g"
    """As for `longspan simulate`."""
    model: str | None = None
    """As for `longspan simulate`."""
    devices: int = 8
    """How many there are."""
    tp: str = "1,2,4,8"
    """Degrees of tensor parallelism to try."""
    pp: str = "1"
    """Numbers of pipeline stages to try; an instance has tp times pp devices."""
    policies: str = "longspan,elastic_fcfs,loongserve,medha"
    """Policies to try."""
    kv_tokens: int | None = None
    """As for `longspan simulate`."""
    output_limit: OutputLimit = "longest"
    """As for `longspan simulate`."""
    slo: str | None = None
    """As for `longspan simulate`. Alone means: on the best way to cut up all devices."""
    attainment: float = 0.9
    """The share of short and of long requests, each by themselves, to be within the SLO."""
    long_threshold: int = 4096
    """As for `longspan simulate`."""
    jobs: int | None = None
    """Simulations at the same time; by default one for each core."""
    json: Path | None = None
    """Write the answers to this file."""

    def __post_init__(self) -> None:
        SchedulingKnobs.__post_init__(self)
        parse_slo(self.slo)
        check_writable(self.json)
        if not 0 < self.attainment <= 1:
            raise ConfigError(f"attainment is {self.attainment}, but must lie above 0, and not above 1")
        check_count("devices", self.devices, high=MOST_INSTANCES)
        if self.jobs is not None:
            check_count("jobs", self.jobs, high=MOST_JOBS)
        check_count("long_threshold", self.long_threshold, low=0)
        if not self.policy_names:
            raise ConfigError("no policies are given; name some, such as loongserve,medha")
        if not self.splits:
            raise ConfigError(f"tp is {self.tp} and pp {self.pp}, but there are {self.devices} devices")

    @property
    def policy_names(self) -> list[str]:
        return [name.strip() for name in self.policies.split(",") if name.strip()]

    @property
    def splits(self) -> list[Split]:
        """Those that leave room for an instance."""
        tps, pps = _degrees("tp", self.tp), _degrees("pp", self.pp)
        return [Split(tp, pp) for tp in tps for pp in pps if tp * pp <= self.devices]


def _degrees(name: str, text: str) -> list[int]:
    try:
        degrees = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        degrees = [0]
    if any(degree < 1 for degree in degrees):
        raise ConfigError(f"{name} is {text!r}, but must be numbers, such as 1,2,4")
    return degrees
