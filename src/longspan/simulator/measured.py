"""This machine: one fitted to a scaling information base, the file of `longspan profile`."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from longspan.core.costs.batch_shape import BatchShape
from longspan.errors import ConfigError
from longspan.sib import Deployment, ScalingInformationBase
from longspan.simulator.calibration import Figure, Timing, calibrate, mean_error
from longspan.simulator.fleet import Fleet, SimulatedModel
from longspan.simulator.interference import Interference
from longspan.simulator.machine import DataSheet, Efficiency, Machine, Overheads
from longspan.simulator.residuals import Residuals
from longspan.simulator.spread import evenly_spread

logger = logging.getLogger(__name__)

_ANY = (1e3, 1e18)
_LATENCY = (1e-9, 1.0)
_FIGURES = (
    Figure("sheet", "flops", *_ANY),
    Figure("sheet", "memory_bandwidth", *_ANY),
    Figure("efficiency", "attention", 1e-3, 10.0),
    *(Figure("overheads", name, *_LATENCY) for name in ("iteration_s", "prompts_s", "request_s", "layer_s")),
)
_FIGURES_OF_SEVERAL = (
    Figure("sheet", "link_bandwidth", *_ANY),
    Figure("overheads", "contention", 1e-4, 10.0),
    *(
        Figure("overheads", name, *_LATENCY)
        for name in ("instance_s", "exchange_s", "round_s", "piece_s", "migration_s")
    ),
)
_ONE_NODE = 2**20  # devices
_UNLIMITED = 2**31  # tokens
_DOUBTFUL = 0.3  # mean relative error


def measured_machine(sib: ScalingInformationBase, path: Path) -> Machine:
    """Return the file's machine: devices, links and overheads, as its timings show; its memory is not known.

    All its devices are of one node. Raises ConfigError: the file holds too little.
    """
    alone = [m for m in sib.measurements.iterations if m.shape.num_instances == 1]
    prefill = max((m for m in alone if m.shape.kind == "prefill"), key=lambda m: m.seconds, default=None)
    decode = min((m for m in alone if m.shape.kind == "decode"), key=lambda m: m.seconds, default=None)
    if prefill is None or decode is None:
        raise ConfigError(f"{path} holds no prefill or no decode on one instance; measure anew")
    shape, tp = measured_model(sib.deployment).shape, sib.deployment.tp
    tokens = sum(length for length, _ in prefill.shape.chunks)
    origin = f"fitted to {path.name}: {sib.deployment.processor}, {sib.date}"
    first_guess = Machine(
        name=f"sib:{path.name}",
        sheet=DataSheet(
            flops=tokens * shape.flops_per_token / prefill.seconds / tp, memory_bytes=None,
            memory_bandwidth=shape.weights_bytes / decode.seconds / tp, devices_per_node=_ONE_NODE,
            link_bandwidth=1e9, network_bandwidth=1e9, origin=origin,
        ),
        efficiency=Efficiency(matmul=1.0, attention=0.5, memory=1.0, link=1.0, origin=origin),
        overheads=Overheads(
            iteration_s=1e-3, prompts_s=1e-4, request_s=1e-5, instance_s=1e-4, layer_s=1e-5, allreduce_s=1e-5,
            exchange_s=1e-5, round_s=1e-5, piece_s=1e-5, network_s=0.0, migration_s=1e-3, contention=0.1,
            overlaps_host=False, origin=origin,  # timings of iterations do not tell it apart
        ),
        lends_context=sib.deployment.device.startswith("cpu"),
    )  # fmt: skip
    timings = sib_timings(sib, first_guess)
    figures = _FIGURES + (_FIGURES_OF_SEVERAL if sib.deployment.instances > 1 else ())
    machine = calibrate(first_guess, figures, timings)
    error = mean_error(machine, timings)
    logger.log(
        logging.WARNING if error > _DOUBTFUL else logging.INFO,
        "%s: a machine fitted to its %d timings is %.0f %% off on average", path, len(timings), 100 * error,
    )  # fmt: skip
    iterations = [(timing, timing.work) for timing in timings if isinstance(timing.work, BatchShape)]
    factors = [(evenly_spread(work), timing.seconds / timing.predict(machine)) for timing, work in iterations]
    interference = Interference.of(sib.measurements.interference)
    overheads = replace(machine.overheads, unqueued_s=sib.measurements.unqueued_s)
    return replace(machine, overheads=overheads, residuals=Residuals.of(factors), interference=interference)


def sib_timings(sib: ScalingInformationBase, machine: Machine) -> list[Timing]:
    """Return what the file measured, as timings on `machine`."""
    model, tp, pp = measured_model(sib.deployment), sib.deployment.tp, sib.deployment.pp
    numbers = range(1, sib.deployment.instances + 1)
    fleets = {number: Fleet(machine=machine, model=model, instances=number, tp=tp, pp=pp) for number in numbers}
    iterations = [
        Timing(f"{m.shape.kind} on {m.shape.num_instances}", fleets[m.shape.num_instances], m.shape, m.seconds)
        for m in sib.measurements.iterations
    ]
    return iterations + [
        Timing("migration", fleets[sib.deployment.instances], m.num_tokens, m.seconds)
        for m in sib.measurements.migrations
    ]


def measured_model(deployment: Deployment) -> SimulatedModel:
    """Return the model that was profiled; its longest context is not in the file, and no limit here."""
    return SimulatedModel(name=deployment.model, shape=deployment.model_shape, max_model_len=_UNLIMITED)
