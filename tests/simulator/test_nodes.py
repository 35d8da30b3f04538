"""Fleets of several nodes, simulated: one log has them all, replays, and tells what is so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from longspan.entrypoints.cli import run
from longspan.metrics.event_log import EventLogWriter, read_event_log, replay
from longspan.metrics.explain import explain
from longspan.profiler.simulated import fit_simulated
from longspan.simulator.simulator import Simulation, Simulator
from longspan.workload.traces import TraceRequest

from .examples import small_world, workload

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
