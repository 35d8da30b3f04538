"""Published timings, to fit machines to and to judge the fit by.

LoongServe (SOSP'24), figure 3: prefill and decode of (batch size, prompt length) on 8 A800-80GB with Llama-2-7B's shape
(LWM-1M), cut up into 1, 2 or 4 instances; figures of its notebooks, github.com/LoongServe/LoongServe, test/longserve.
Its engine launches every kernel anew and moves KV around the ring without overlap; each master of a decode takes 128
requests. A40: coefficients of equation 7 that a fork fitted to its own profile of Llama-3.1-8B
(github.com/ydshi0, exp_result/analytical-model.csv), as the times that they stand for.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from longspan.core.costs.batch_shape import BatchShape
from longspan.core.costs.cost_model import Chunk
from longspan.simulator.calibration import Timing
from longspan.simulator.fleet import Fleet
from longspan.simulator.machine import Machine
from longspan.simulator.models import MODELS

REQUESTS_PER_MASTER = 128
FIGURE_3_BATCHES = ((512, 1000), (128, 5000), (64, 10_000), (16, 50_000), (4, 100_000), (1, 500_000))
# (instances, tp): prefill and decode of each batch, milliseconds
FIGURE_3_MS: dict[tuple[int, int], tuple[tuple[float, float], ...]] = {
    (1, 8): ((7757, 38.9), (10157, 37.8), (10792, 36.4), (19506, 42.9), (13546, 26.4), (51135, 37.6)),
    (2, 4): ((5776, 42.5), (7694, 40.3), (8306, 38.1), (16595, 44.9), (12147, 28.0), (51700, 41.6)),
    (4, 2): ((5267, 42.3), (7072, 41.4), (7701, 40.1), (15744, 45.9), (11798, 28.9), (53606, 37.8)),
}
# (instances, tp, prompt length): of one request, from the same notebooks. A prompt that short is kept by one instance,
# so that one decodes.
FIGURE_3_SINGLE_MS = {(1, 1, 10): (18.6, 11.4), (1, 1, 1000): (68.9, 13.0), (4, 2, 100): (38.5, 9.8)}
# (instances, tp): A, B, C of A + B sum(len) + C sum(len^2), milliseconds; its row for 4 x 2 is mere noise
A40_COEFFICIENTS = {
    (1, 1): (18.43, 0.1380, 5.00e-6),
    (2, 1): (22.67, 0.0686, 2.51e-6),
    (4, 1): (29.53, 0.0419, 1.29e-6),
    (8, 1): (43.51, 0.0270, 6.23e-7),
    (1, 2): (16.86, 0.0798, 2.51e-6),
    (2, 2): (21.78, 0.0465, 1.29e-6),
}
A40_LENGTHS = (100, 1000, 10_000, 100_000)


def loongserve_figure_3(machine: Machine) -> list[Timing]:
    """Return timings on A800s whose data sheet is the machine's."""
    timings = []
    for (instances, tp), row in FIGURE_3_MS.items():
        fleet = _fleet(machine, "lwm-1m", instances, tp)
        for (batch, length), times in zip(FIGURE_3_BATCHES, row, strict=True):
            timings.append(_prefill(fleet, batch, length, times[0]))
            timings.append(_decode(fleet, batch, length, times[1]))
    for (instances, tp, length), times in FIGURE_3_SINGLE_MS.items():
        timings.append(_prefill(_fleet(machine, "lwm-1m", instances, tp), 1, length, times[0]))
        timings.append(_decode(_fleet(machine, "lwm-1m", 1, tp), 1, length, times[1]))
    return timings


def without_overlap(machine: Machine) -> Machine:
    """Return the machine without overlap, as both engines were that these timings are of."""
    return replace(machine, overheads=replace(machine.overheads, overlaps_ring=False))


def a40_prefills(machine: Machine) -> list[Timing]:
    return [
        _prefill(
            _fleet(machine, "llama-3-8b", instances, tp), 1, length, fixed + per_token * length + per_pair * length**2
        )
        for (instances, tp), (fixed, per_token, per_pair) in A40_COEFFICIENTS.items()
        for length in A40_LENGTHS
    ]


def _fleet(machine: Machine, model: str, instances: int, tp: int) -> Fleet:
    return Fleet(machine=machine, model=MODELS[model], instances=instances, tp=tp)


def _prefill(fleet: Fleet, batch: int, length: int, milliseconds: float) -> Timing:
    shape = BatchShape(num_instances=fleet.instances, chunks=(Chunk(length),) * batch)
    return Timing(_label(fleet, "prefill", batch, length), fleet, shape, milliseconds / 1000)


def _decode(fleet: Fleet, batch: int, length: int, milliseconds: float) -> Timing:
    shape = BatchShape(
        num_instances=fleet.instances, num_requests=batch, context_tokens=batch * length,
        num_masters=min(fleet.instances, ceil(batch / REQUESTS_PER_MASTER)),
    )  # fmt: skip
    return Timing(_label(fleet, "decode", batch, length), fleet, shape, milliseconds / 1000)


def _label(fleet: Fleet, kind: str, batch: int, length: int) -> str:
    return f"SP{fleet.instances}TP{fleet.tp} {kind} {batch} x {length:,}"
