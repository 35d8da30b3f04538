"""`longspan profile`: from an engine to a scaling information base, and from that to its errors."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from longspan.config import EngineConfig
from longspan.core.costs.cost_model import FittedCostModel
from longspan.core.policies.episode import EpisodePolicy
from longspan.engine.assembly import start_engine
from longspan.engine.async_llm import AsyncLLM
from longspan.errors import ConfigError
from longspan.phases import OnPhase, ignore
from longspan.profiler.check import Check, check_predictions
from longspan.profiler.fit import fit_cost_model
from longspan.profiler.grid import check_groups, fit_groups
from longspan.profiler.interference import measure_interference
from longspan.profiler.measure import Measurer, Report
from longspan.sib import Measurements, ScalingInformationBase, package_versions

_ALONE = 0.8
"""Of the budget, for one group at a time; the rest is for two at once."""


async def profile(
    config: EngineConfig, budget_s: float, report: Report, on_phase: OnPhase = ignore
) -> ScalingInformationBase:
    """Measure a deployment and fit a cost model to it. budget_s: of everything, from now on.

    on_phase: hears how far the engine's start is.

    Raises ConfigError, ModelError, EngineDeadError.
    """
    begun = time.monotonic()
    async with _engine(config, on_phase) as (engine, policy):
        groups = fit_groups(engine.core.scheduler.config, engine.max_model_len)

        def fit(measurements: Measurements) -> FittedCostModel | None:
            try:
                return fit_cost_model(measurements, config.num_instances)
            except ConfigError:
                return None

        alone_s = budget_s if config.num_instances == 1 else _ALONE * budget_s
        measurements = await Measurer(engine, policy, fit, begun, alone_s, report).measure(groups)
        if config.num_instances > 1:
            interference = await measure_interference(engine, policy, begun, budget_s, report)
            measurements = replace(measurements, interference=interference)
        return ScalingInformationBase(
            deployment=engine.deployment,
            versions=package_versions(),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            measurements=measurements,
            cost_model=fit_cost_model(measurements, config.num_instances),
        )


async def check(
    config: EngineConfig, sib: ScalingInformationBase, path: Path, budget_s: float, report: Report,
    on_phase: OnPhase = ignore,
) -> Check:  # fmt: skip
    """Measure what the fit has not seen, beside what it predicts. Raises as `profile`; `sib` must fit `config`."""
    begun = time.monotonic()
    async with _engine(config, on_phase) as (engine, policy):
        sib.require(engine.deployment, path)
        groups = check_groups(engine.core.scheduler.config, engine.max_model_len)
        measurer = Measurer(engine, policy, lambda _: sib.cost_model, begun, budget_s, report)
        measurements = await measurer.measure(groups)
        return check_predictions(sib.cost_model, measurements.without(sib.measurements))


@asynccontextmanager
async def _engine(config: EngineConfig, on_phase: OnPhase) -> AsyncIterator[tuple[AsyncLLM, EpisodePolicy]]:
    policy = EpisodePolicy()
    engine = await start_engine(replace(config, sib=None, event_log=None), policy, on_phase)
    try:
        yield engine, policy
    finally:
        await engine.close()
