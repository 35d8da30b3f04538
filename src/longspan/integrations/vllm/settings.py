"""What can be set: vLLM's `--additional-config '{"longspan": {...}}'`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from longspan.config import Objective, check_choice, check_seconds
from longspan.errors import ConfigError
from longspan.tuning.targets import Aim

AIM = Aim(fixed_share=0.07, least_s=0.05, most_s=1.0, decodes=4.0)
"""vLLM's own steps are as long as its token budget makes them, so its long prompts lose little to what every step
costs. They shall not lose much here: paces are more leisurely than those that `longspan serve` chooses, and follow the
machine's speed as vLLM's do."""
IDLE_FIXED_SHARE = 0.12
"""The policy's option of that name, where it is not set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """objective: what default paces are chosen for, as with `longspan serve`; none: `AIM`. tpot_slo_s,
    ttft_slo_floor_s: of requests that name none, seconds; by default what suits the objective at the speed that is
    measured. ttft_slo_factor: a request that names no TTFT should start to answer after so many times what its prompt
    takes alone. event_log: a file to write every decision to. policy: options of the policy `longspan`, by name."""

    objective: Objective | None = None
    tpot_slo_s: float | None = None
    ttft_slo_floor_s: float | None = None
    ttft_slo_factor: float = 5.0
    event_log: Path | None = None
    policy: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.objective is not None:
            check_choice("objective", self.objective, Objective)
        _check_number("ttft_slo_factor", self.ttft_slo_factor)
        for name in ("tpot_slo_s", "ttft_slo_floor_s"):
            if (seconds := getattr(self, name)) is not None:
                _check_number(name, seconds)
                check_seconds(name, seconds)
        if not isinstance(self.policy, Mapping) or not all([isinstance(name, str) for name in self.policy]):
            raise ConfigError(f"policy is {self.policy!r}, but must have the policy's options by name")


def read_settings(additional: object) -> Settings:
    """Return the settings that vLLM's `additional_config` has under "longspan".

    Raises ConfigError: there is no such setting, or a value cannot be.
    """
    given: Any = additional.get("longspan", {}) if isinstance(additional, Mapping) else {}
    known = [each.name for each in fields(Settings)]
    if not isinstance(given, Mapping) or (unknown := [name for name in given if name not in known]):
        what = f"has {', '.join(map(str, unknown))}" if isinstance(given, Mapping) else f"is {given!r}"
        raise ConfigError(f"additional_config's longspan {what}, but may have {', '.join(known)}")
    values = dict(given)
    if (path := values.get("event_log")) is not None:
        if not isinstance(path, str | Path) or not str(path):
            raise ConfigError(f"event_log is {path!r}, but must be the path of a file")
        values["event_log"] = Path(path)
    return Settings(**values)


def _check_number(name: str, value: object) -> None:
    """What stands in JSON is of any type."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name} is {value!r}, but must be a number")
