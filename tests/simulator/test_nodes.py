"""Fleets of several nodes, simulated: one log has them all, replays, and tells what is so."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from longspan.config import SchedulerConfig
from longspan.core.actions import Action
from longspan.core.events import Event
from longspan.entrypoints.cli import run
from longspan.metrics.event_log import EventLogWriter, read_event_log, replay
from longspan.metrics.explain import explain
from longspan.profiler.simulated import fit_simulated
from longspan.simulator.cost import IterationCost
from longspan.simulator.fleet import Fleet
from longspan.simulator.hardware import A800_80G
from longspan.simulator.load import offered_load
from longspan.simulator.models import MODELS
from longspan.simulator.simulator import Simulation, Simulator
from longspan.workload.arrivals import poisson
from longspan.workload.traces import TraceRequest, read_trace
from longspan.workload.transforms import with_arrivals

from .examples import small_world, workload

DATA = Path(__file__).parents[1] / "data"

NODES = [{0, 1, 2}, {3, 4}, {5, 6}]


def simulated(policy: str, requests: Sequence[TraceRequest], log: Path) -> Simulation:
    config, cost = small_world(policy, instances=7)
    config = replace(config, node_instances=3)
    cost_model = fit_simulated(cost, config, 8000)
    assert cost_model.max_instances == 3  # as many as work together at most
    with EventLogWriter(log, config, cost_model, run="test") as writer:
        return Simulator(config, cost, cost_model=cost_model, event_log=writer).run(requests)


@pytest.mark.parametrize("policy", ["longspan", "loongserve", "vllm", "replicated"])
def test_one_log_has_all_nodes_and_replays(policy: str, tmp_path: Path) -> None:
    requests = workload(3, number=120, rate=100.0)
    simulation = simulated(policy, requests, tmp_path / "log")
    assert len(simulation.requests) == 120
    assert replay(tmp_path / "log") is None
    groups = {action.group for record in read_event_log(tmp_path / "log") for action in record.actions
              if hasattr(action, "group")}  # fmt: skip
    assert all(any(set(group) <= node for node in NODES) for group in groups)
    assert all(any(set(group) <= node for group in groups) for node in NODES)


def test_the_same_requests_give_the_same_log(tmp_path: Path) -> None:
    for name in ("one", "other"):
        simulated("longspan", workload(4), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_only_requests_of_its_own_node_delay_a_request(tmp_path: Path) -> None:
    simulated("longspan", workload(5, number=150, rate=300.0), tmp_path / "log")
    home: dict[str, int] = {}
    for record in read_event_log(tmp_path / "log"):
        for decision in record.why:
            if decision.step == "node":
                home[decision.request_ids[0]] = int(decision.predicted["node"])
    delayed = 0
    for request_id in list(home)[::10]:
        story = explain(tmp_path / "log", request_id)
        for chapter in story.chapters:
            for delayer in chapter.delayers:
                delayed += 1
                assert home[delayer.request_id] == home[request_id]
        assert f"it belongs to node {home[request_id]}, instances" in "\n".join(story.lines())
    assert delayed > 0


def test_a_longer_request_than_a_node_holds_is_refused(tmp_path: Path) -> None:
    requests = [TraceRequest(0.0, 12_000, 10), TraceRequest(0.1, 11_900, 10)]
    simulation = simulated("longspan", requests, tmp_path / "log")
    assert [request.refusal for request in simulation.requests] == ["too_long", None]


def test_it_is_an_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "simulate", "--workload", "medha_mix", "--rate", "2", "--num-requests", "40", "--max-total-tokens", "20000",
        "--instances", "4", "--event-log", str(tmp_path / "log"),
    ]  # fmt: skip
    assert run([*arguments, "--node-instances", "2"]) == 0
    assert run(["replay", str(tmp_path / "log")]) == 0
    assert "every decision is the same" in capsys.readouterr().out
    assert run([*arguments[:-2], "--node-instances", "0"]) == 2
    assert "node_instances is 0, but must be at least 1" in capsys.readouterr().err


@pytest.mark.heavy
def test_the_queue_of_loongserve_stays_bounded_in_nodes_of_a_host() -> None:
    """At an offered load of .8, where a single scheduler puts groups together over slow links between hosts."""
    fleet = Fleet(machine=A800_80G, model=MODELS["lwm-1m"], instances=128)
    config = SchedulerConfig(
        policy="loongserve", num_instances=128, node_instances=8, kv_tokens=fleet.kv_tokens_that_fit(),
    )  # fmt: skip
    cost = IterationCost(fleet)
    lengths = read_trace(DATA / "loongserve_mixed_200.csv.gz") * 2
    random.Random(0).shuffle(lengths)
    requests = list(with_arrivals(lengths, poisson(1.0, 0)))
    slower = (offered_load(requests, cost, config) or 0.0) / 0.8
    requests = [replace(request, arrived_at_s=(request.arrived_at_s or 0.0) * slower) for request in requests]
    simulator = Simulator(config, cost, cost_model=fit_simulated(cost, config, fleet.model.max_model_len))
    most = 0

    def look(event: Event, now: float, handle: Any = simulator.scheduler.handle) -> list[Action]:
        nonlocal most
        actions: list[Action] = handle(event, now)
        most = max(most, simulator.scheduler.stats().num_waiting)
        return actions

    simulator.scheduler.handle = look  # type: ignore[method-assign]
    simulator.run(requests)
    assert 0 < most < 30  # of 400
