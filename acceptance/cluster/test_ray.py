"""One engine whose instances Ray has placed: on two machines that are nodes of Ray; and on one, by a Ray of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from acceptance.cluster.fleet import OPTIONS, Asked, Fleet
from acceptance.cluster.namespaces import Machine, two_machines
from acceptance.cluster.network import KEY, Network
from tests.e2e.conftest import SETTLE_S, serve, wait_for

PORT = 6379
SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
OURS = ("ray_agent", "spawn_main", "longspan.executor.ray", "longspan serve")
"""What command lines of Longspan's processes have in them."""


class RayMachine:
    """A machine that is a node of Ray with one CPU."""

    def __init__(self, machine: Machine, *options: str) -> None:
        self.machine, self.options = machine, options
        machine.run("ip", "route", "add", "default", "dev", machine.cable)  # or Ray does not find its own address
        self.start()

    def start(self) -> None:
        self.machine.run(
            sys.executable, "-m", "ray.scripts.scripts", "start", *self.options, "--node-ip-address",
            self.machine.address, "--num-cpus", "1", "--object-store-memory", "80000000", "--disable-usage-stats",
        )  # fmt: skip

    def processes(self, *names: str) -> list[int]:
        """Those whose command lines have one of these names in them; all, if none is given."""
        return self.machine.running(*names) if names else self.machine.processes()

    def kill(self, *names: str) -> None:
        for pid in self.processes(*names):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def ray_machines() -> Iterator[tuple[RayMachine, RayMachine]]:
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # names of sockets cannot be long
    with two_machines() as (host, other):
        nodes: list[RayMachine] = []
        try:
            address = f"{host.address}:{PORT}"
            head = ("--head", "--port", str(PORT), "--include-dashboard", "false", "--temp-dir", folder)
            nodes.append(RayMachine(host, *head))
            nodes.append(RayMachine(other, "--address", address))
            yield nodes[0], nodes[1]
        finally:
            for node in nodes:
                node.kill()
            shutil.rmtree(folder, ignore_errors=True)


class RayFleet(Fleet):
    """here, there: the nodes of Ray on both machines."""

    here: RayMachine
    there: RayMachine


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[RayMachine, RayMachine]]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        with ray_machines() as both:
            yield both


@contextmanager
def served(nodes: tuple[RayMachine, RayMachine]) -> Iterator[RayFleet]:
    host, other = nodes[0].machine, nodes[1].machine
    with serve("--host", host.address, "--executor", "ray", "--ray-address", f"{host.address}:{PORT}", "--api-key", KEY,
               *OPTIONS, on=host.command()) as server:  # fmt: skip
        fleet = RayFleet(host, other, server)
        fleet.here, fleet.there = nodes
        yield fleet


@pytest.fixture(scope="module")
def fleet(nodes: tuple[RayMachine, RayMachine]) -> Iterator[RayFleet]:
    with served(nodes) as running:
        yield running


def test_it_answers_as_one_machine_does(fleet: RayFleet, expected: list[str]) -> None:
    assert fleet.ask_all() == expected
    assert fleet.state() == ("serving", 0)
    assert len(fleet.there.processes("spawn_main")) == 1


def test_a_killed_raylet_costs_its_node_only(fleet: RayFleet, expected: list[str]) -> None:
    """Answers under way go on. Ray has no room for the instance until the node is back: then it joins again."""
    _, restarts = fleet.state()
    asked = Asked(fleet)
    fleet.there.kill("raylet/raylet")
    assert asked.answers() == expected
    wait_for(lambda: fleet.state()[0] != "serving" and not fleet.there.processes(*OURS))
    assert fleet.health() == "degraded"
    assert fleet.ask_all() == expected
    fleet.there.kill()
    fleet.there.start()
    fleet.wait_until(restarts + 1)
    assert fleet.ask_all() == expected


def test_a_killed_agent_is_replaced(fleet: RayFleet, expected: list[str]) -> None:
    _, restarts = fleet.state()
    asked = Asked(fleet)
    fleet.there.kill("ray_agent")
    assert asked.answers() == expected
    fleet.wait_until(restarts + 1)
    assert fleet.ask_all() == expected


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--ray-address", "{host}:6379", "--instances", "3", "--ray-timeout-s", "40"), "no room for 3 of 3 instances"),
        (("--ray-address", "{host}:6380", "--ray-timeout-s", "10"), "does not answer"),
    ],
    ids=["of room", "of Ray"],
)
def test_want_of_it_is_told(fleet: RayFleet, options: tuple[str, ...], told: str) -> None:
    """In a line, and in time, which is enough for a slow machine to speak to Ray at all; and who is served already does
    not notice."""
    filled = [option.format(host=fleet.host.address) for option in options]
    command = [sys.executable, "-m", "longspan", "serve", "--port", "0", "--executor", "ray"]
    ended = subprocess.run(
        fleet.host.command(*command, *filled, "--threads-per-device", "1"), timeout=2 * SETTLE_S, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert ended.returncode == 1 and told in ended.stderr, ended.stderr
    assert fleet.state()[0] == "serving"


def test_it_ends_with_the_server(fleet: RayFleet) -> None:
    assert fleet.server.stop() == 0
    wait_for(lambda: not fleet.here.processes(*OURS) and not fleet.there.processes(*OURS))


def test_a_killed_server_leaves_nothing(nodes: tuple[RayMachine, RayMachine]) -> None:
    """Ray's own processes go on, and have their CPUs for others."""
    in_memory = set(Path("/dev/shm").iterdir())
    for _ in range(2):
        with served(nodes) as fleet:
            assert fleet.state()[0] == "serving"
            fleet.here.kill("longspan serve")
        wait_for(lambda: not any(node.processes(*OURS) for node in nodes))
    assert not [path for path in set(Path("/dev/shm").iterdir()) - in_memory if path.name.startswith("longspan")]


def test_without_a_cluster_it_starts_one(expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two instances on one node of Ray, which exchange through memory. Nothing of it outlives a killed server."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    try:
        with two_machines() as (host, other):
            host.run("ip", "route", "add", "default", "dev", host.cable)
            with serve("--host", host.address, "--executor", "ray", "--api-key", KEY, *OPTIONS,
                       on=host.command()) as server:  # fmt: skip
                net = Network(host, other, server.url, server.lines)
                assert '"node":1' in net.curl("/fleet", machine=host).replace(" ", "")
                assert Fleet(host, other, server).ask_all() == expected
            wait_for(lambda: not host.processes())
        assert not list(folder.iterdir())
    finally:
        shutil.rmtree(folder)
