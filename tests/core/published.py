"""A small deployment for the published baselines."""

from __future__ import annotations

from typing import Any

from longspan.config import SchedulerConfig
from longspan.core.actions import MigrateKV, RunBatch
from longspan.core.policies.base import Policy

from .cost_models import scaling_model
from .driver import Driver
from .settings import configured
from .worker_model import instances_of


def settings_of(policy: str, changes: dict[str, Any]) -> SchedulerConfig:
    given: dict[str, Any] = {
        "num_instances": 1, "kv_tokens": 1000, "policy": policy, "decode_headroom": 4, "lookahead": False,
    }  # fmt: skip
    return configured(**(given | changes))


MODEL = scaling_model(
    4, fixed=0.0, fixed_step=0.0, per_token=1e-3, per_pair=0.0, decode_fixed=0.01, decode_step=0.0, per_request=0.0
)
"""A prompt's token takes a millisecond, a decode iteration ten."""


def driver(policy: str, by: Policy | None = None, **changes: Any) -> Driver:
    """One instance of 1000 slots."""
    return Driver(settings_of(policy, changes), by, cost_model=MODEL)


def running(d: Driver, instance: int) -> RunBatch | MigrateKV:
    return next(work for work in d.model.started if instance in instances_of(work))
