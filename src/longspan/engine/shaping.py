"""How the cores are cut up where nobody says: measured once for a model and machine, before workers start."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import platform
import time
from dataclasses import replace
from pathlib import Path

from longspan.config import EngineConfig
from longspan.core.policies.base import Policy, is_tuned_at_start
from longspan.engine.fingerprint import add_model
from longspan.engine.preflight import Machine, runs_on_cpu, this_machine, weight_bytes
from longspan.executor.probing import Probe
from longspan.models.architecture import ModelConfig
from longspan.models.catalog import ResolvedModel
from longspan.phases import OnPhase, Phase
from longspan.sib import package_versions
from longspan.tuning.choice import choose_shape
from longspan.tuning.memory import Chosen, Known, recall, remember
from longspan.tuning.probing import Probed, ProbeSettings
from longspan.tuning.shapes import Shape, possible_shapes, worker_counts

logger = logging.getLogger(__name__)

_PROBE_S = 30.0  # with the kernels, which the first of all starts compiles
_MEMORY_SHARE = 0.5  # of what is free, for all copies of the weights


async def with_shape(
    config: EngineConfig, policy: Policy, model: ResolvedModel, model_config: ModelConfig, on_phase: OnPhase,
    machine: Machine | None = None,
) -> EngineConfig:  # fmt: skip
    """Return the configuration with instances, stages and threads, where they are the start's to choose.

    They are where nothing is said of them, the policy is tuned at the start, and its workers are processes on a CPU.
    """
    machine = machine or this_machine()
    if config.has_shape or not is_tuned_at_start(policy) or config.executor != "multiproc":
        return config
    if not runs_on_cpu(config, machine):
        return config
    if machine.cores == 1:
        return _of(config, Chosen(shape=Shape(1, 1, 1), reason="there is one core"))
    copies = int(_MEMORY_SHARE * machine.free_bytes // max(1, weight_bytes(config, model, model_config)))
    shapes = possible_shapes(machine.cores, model_config.num_layers, copies)
    name = await asyncio.to_thread(_name, config, model, machine.cores)
    known, how, is_sure = recall(name), "as measured before", True
    if known is not None and (chosen := known.chosen.get(config.objective)) and chosen.shape in shapes:
        return _of(config, chosen, how)
    if known is None:
        begun = time.monotonic()
        on_phase(Phase("measuring how to cut up the cores, once for this model and machine"))
        probed = await _probed(config, model, model_config, machine)
        if isinstance(probed, str) or not probed.speeds:
            why = probed if isinstance(probed, str) else "too slow beside other work" if probed.is_busy else "no CPU"
            logger.warning("how to cut up %d cores is measured at the next start: %s", machine.cores, why)
            return config
        logger.debug("measured: %s", probed.speeds)
        known, how, is_sure = Known(speeds=probed.speeds), _told(probed, time.monotonic() - begun), not probed.is_busy
    measured = {speed.threads for speed in known.speeds}
    shapes = [shape for shape in shapes if shape.threads in measured]
    choice = choose_shape(shapes, known.speeds, model_config.num_layers, config.objective)
    chosen = Chosen(shape=choice.shape, reason=choice.reason)
    if is_sure:
        remember(name, replace(known, chosen={**known.chosen, config.objective: chosen}))
    return _of(config, chosen, how)


def _told(probed: Probed, seconds: float) -> str:
    busy = ", on a busy machine, so that the next start measures anew" if probed.is_busy else ""
    return f"measured in {seconds:.1f} s{busy}"


def _of(config: EngineConfig, chosen: Chosen, how: str = "") -> EngineConfig:
    shape = chosen.shape
    logger.info(
        "%s for %s%s: %s", shape, config.objective, f", {how}" if how else "", chosen.reason,
    )  # fmt: skip
    instances = shape.instances * config.nnodes  # of machines that are taken to be alike
    return replace(config, instances=instances, pp=shape.pp, threads_per_device=shape.threads)


async def _probed(
    config: EngineConfig, model: ResolvedModel, model_config: ModelConfig, machine: Machine
) -> Probed | str:
    settings = ProbeSettings(
        model_path=str(model.path), dtype=config.dtype, device=config.device, quantization=config.quantization,
        weight_bytes=weight_bytes(config, model, model_config),
        threads=[machine.cores // count for count in worker_counts(machine.cores)],
    )  # fmt: skip
    probe = Probe(settings)
    try:
        return await asyncio.to_thread(probe.run, _PROBE_S)
    finally:
        probe.close()


def _name(config: EngineConfig, model: ResolvedModel, cores: int) -> str:
    """Of the file for this model, machine and version."""
    digest = hashlib.sha256()
    for value in (package_versions(), config.dtype, config.quantization, cores, _processor(),
                  os.environ.get("LONGSPAN_CPU_ISA")):  # fmt: skip
        digest.update(f"{value}\0".encode())
    add_model(digest, model.path)
    return f"{''.join(c if c.isalnum() or c in '-._' else '_' for c in model.name)[:64]}-{digest.hexdigest()[:16]}"


def _processor() -> str:
    """What it calls itself, and what it can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(("model name", "flags", "cache size"))))
