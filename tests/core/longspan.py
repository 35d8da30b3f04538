"""Deployments of the policy `longspan` that are played on a virtual clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from longspan.core.actions import Action, RefuseRequest, RunBatch
from longspan.core.costs.cost_model import CostModel, FittedCostModel
from longspan.core.costs.load import batch_seconds
from longspan.core.decision import Decision
from longspan.core.events import Event, RequestArrived
from longspan.core.scheduler import Scheduler
from longspan.service_level import DEFAULT_SERVICE, ServiceLevel
from longspan.simulator.driver import Work
from longspan.simulator.playback import Played, play

from .cost_models import scaling_model
from .reading import batches
from .settings import configured

Arrival = tuple[float, RequestArrived]


def plain(num_instances: int = 1, **changes: float) -> FittedCostModel:
    """A token costs 1 ms, whatever its context; an iteration costs 10 ms, whatever is in it."""
    return scaling_model(num_instances, **({"fixed": 0.01, "fixed_step": 0.0, "per_token": 1e-3, "per_pair": 0.0,
                         "decode_fixed": 0.01, "decode_step": 0.0, "per_request": 0.0} | changes))  # fmt: skip


@dataclass
class Run:
    """What was played. took: of each batch that was issued, when and for how long it ran. why: of each step."""

    scheduler: Scheduler
    played: dict[str, Played] = field(default_factory=dict)
    took: list[tuple[float, RunBatch, float]] = field(default_factory=list)
    steps: list[tuple[float, Event, list[Action]]] = field(default_factory=list)
    why: list[tuple[Decision, ...]] = field(default_factory=list)

    @property
    def refused(self) -> dict[str, RefuseRequest]:
        found = [action for _, _, actions in self.steps for action in actions if isinstance(action, RefuseRequest)]
        return {action.request_id: action for action in found}

    def decisions(self, step: str) -> list[Decision]:
        return [decision for decisions in self.why for decision in decisions if decision.step == step]


def played(
    arrivals: Sequence[Arrival],
    model: CostModel,
    *,
    slowdown: Callable[[RunBatch], float] = lambda batch: 1.0,
    look: Callable[[Run, float], None] = lambda run, now: None,
    **changes: Any,
) -> Run:
    """Play them. slowdown: of a batch, actual over predicted seconds. look: is called after each event."""
    given: dict[str, Any] = {
        "num_instances": 1, "kv_tokens": 10**6, "policy": "longspan", "tpot_slo_s": 0.1, "ttft_slo_factor": 5.0,
        "ttft_slo_floor_s": 1.0, "lookahead": False,
    }  # fmt: skip
    config = configured(**(given | changes))
    run = Run(Scheduler(config, cost_model=model))

    def seconds(work: Work) -> float:
        return batch_seconds(work, model) * slowdown(work) if isinstance(work, RunBatch) else 1e-3

    def on_step(now: float, event: Event, actions: list[Action]) -> None:
        run.steps.append((now, event, actions))
        run.took += [(now, batch, seconds(batch)) for batch in batches(actions)]
        run.why.append(run.scheduler.decisions)
        look(run, now)

    run.played = play(run.scheduler, arrivals, seconds, on_step)
    return run


def arrival(at: float, name: str, prompt: int, outputs: int = 1, service: ServiceLevel = DEFAULT_SERVICE) -> Arrival:
    return at, RequestArrived(name, prompt, outputs, service)
