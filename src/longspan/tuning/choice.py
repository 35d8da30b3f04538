"""Which shape serves a small mixed workload best, by the very scheduler that will serve, on measured costs.

The workload is fixed but for its pace, which is the machine's: short prompts among long ones at an easy load, then many
requests at once, then one long prompt alone. Every shape plays it on a virtual clock. Each figure of a shape is
compared with the best shape's; the objective says how much each counts.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from longspan.config import Objective, SchedulerConfig
from longspan.core.actions import RunBatch
from longspan.core.costs.cost_model import Chunk, FittedCostModel
from longspan.core.costs.load import batch_seconds
from longspan.core.events import RequestArrived
from longspan.core.policies import create_policy
from longspan.core.scheduler import Scheduler
from longspan.simulator.driver import Work
from longspan.simulator.playback import Played, play
from longspan.tuning.shapes import Shape
from longspan.tuning.speed import WorkerSpeed, modelled
from longspan.tuning.targets import AIMS, targets

_SHORTS, _SHORT_TOKENS, _SHORT_OUTPUTS = 24, (128, 384), 24
_LONGS, _LONG_TOKENS = 2, 4096
_CLOSED, _CLOSED_TOKENS, _CLOSED_OUTPUTS = 16, 128, 32
_LONG_SHARE = 0.25
"""Of the time that long prompts take at the best, alone."""
_WORTH = 0.05
"""A shape that is better by less than this is not preferred to one that comes before it."""

Figures = Mapping[str, float]
"""short TTFT, TPOT, long TTFT, closed loop, long alone; in seconds, less is better."""
WEIGHTS: dict[Objective, Mapping[str, float]] = {
    "latency": {"short TTFT": 3.0, "TPOT": 3.0, "long TTFT": 1.0, "closed loop": 0.5, "long alone": 1.0},
    "balanced": {"short TTFT": 1.0, "TPOT": 1.0, "long TTFT": 1.0, "closed loop": 1.0, "long alone": 1.0},
    "throughput": {"short TTFT": 0.2, "TPOT": 0.2, "long TTFT": 1.0, "closed loop": 3.0, "long alone": 1.0},
}


@dataclass(frozen=True, slots=True)
class Choice:
    """shape: the best. figures: of all that were tried. reason: for the log."""

    shape: Shape
    figures: Mapping[Shape, Figures]
    reason: str


def choose_shape(
    shapes: Sequence[Shape], speeds: Sequence[WorkerSpeed], num_layers: int, objective: Objective
) -> Choice:
    """Return the shape that serves best; among those that are about as good the first."""
    models = {shape: modelled(shape, speeds, num_layers) for shape in shapes}
    pace_s = min(_quickest(model, shape) for shape, model in models.items())
    figures = {shape: _figures(shape, model, objective, pace_s) for shape, model in models.items()}
    costs = {shape: _cost(figures[shape], figures.values(), WEIGHTS[objective]) for shape in shapes}
    least = min(costs.values())
    best = next(shape for shape in shapes if costs[shape] <= least + _WORTH)
    return Choice(best, figures, _reason(best, figures, costs))


def _figures(shape: Shape, model: FittedCostModel, objective: Objective, pace_s: float) -> Figures:
    aims = targets(model, objective)
    config = SchedulerConfig(
        num_instances=shape.instances, pp=shape.pp, kv_tokens=1 << 16, tpot_slo_s=aims.tpot_s,
        ttft_slo_floor_s=aims.ttft_floor_s, overload="off",
    )  # fmt: skip

    def run(arrivals: Sequence[tuple[float, RequestArrived]]) -> Mapping[str, Played]:
        scheduler = Scheduler(config, create_policy(config.policy), model)
        return play(scheduler, arrivals, lambda work: _seconds(work, model))

    mixed, closed, alone = run(_mixed(pace_s)), run(_closed()), run([(0.0, _request("long", _LONG_TOKENS, 1))])
    shorts = [played for name, played in mixed.items() if name.startswith("short")]
    tpots = sorted((played.token_times[-1] - played.token_times[0]) / (_SHORT_OUTPUTS - 1) for played in shorts)
    return {
        "short TTFT": sorted(played.ttft_s for played in shorts)[int(0.95 * len(shorts))],
        "TPOT": max(tpots[int(0.9 * len(tpots))], AIMS[objective].most_s),  # to be faster still is worth nothing
        "long TTFT": max(played.ttft_s for name, played in mixed.items() if name.startswith("long")),
        "closed loop": max(played.token_times[-1] for played in closed.values()),
        "long alone": alone["long"].ttft_s,
    }


def _seconds(work: Work, model: FittedCostModel) -> float:
    return batch_seconds(work, model) if isinstance(work, RunBatch) else model.migration(work.num_tokens)


def _quickest(model: FittedCostModel, shape: Shape) -> float:
    """The seconds of a long prompt alone, all at once, as if nothing were lost on dividing it."""
    return model.prefill((Chunk(_LONG_TOKENS),), 1) / shape.workers


def _mixed(pace_s: float) -> list[tuple[float, RequestArrived]]:
    """Shorts at random moments, longs now and then."""
    draw = random.Random(0)
    span_s = _LONGS * pace_s / _LONG_SHARE
    arrivals = [
        (span_s * (number + 0.25) / _LONGS, _request(f"long {number}", _LONG_TOKENS, _SHORT_OUTPUTS))
        for number in range(_LONGS)
    ]
    for number in range(_SHORTS):
        at = span_s * (number + draw.random()) / _SHORTS
        arrivals.append((at, _request(f"short {number}", draw.randint(*_SHORT_TOKENS), _SHORT_OUTPUTS)))
    return arrivals


def _closed() -> list[tuple[float, RequestArrived]]:
    return [(0.0, _request(f"one {number}", _CLOSED_TOKENS, _CLOSED_OUTPUTS)) for number in range(_CLOSED)]


def _request(name: str, prompt: int, outputs: int) -> RequestArrived:
    return RequestArrived(name, prompt, outputs)


def _cost(figures: Figures, tried: Collection[Figures], weights: Mapping[str, float]) -> float:
    """The weighted mean of the logarithms of how many times each figure is the best one."""
    worse = {name: math.log(figures[name] / min(other[name] for other in tried)) for name in weights}
    return sum(weights[name] * worse[name] for name in weights) / sum(weights.values())


def _reason(best: Shape, figures: Mapping[Shape, Figures], costs: Mapping[Shape, float]) -> str:
    told = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in figures[best].items())
    others = "; ".join(
        f"{shape} {100 * (math.exp(cost - costs[best]) - 1):+.0f} %" for shape, cost in costs.items() if shape != best
    )
    return f"simulated: {told}" + (f"; against it on average {others}" if others else "")
