"""One engine over two machines, each with an instance of the real model: it serves as one machine with both does, and
goes on without the other."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from acceptance.cluster.fleet import OPTIONS, Asked, Fleet
from acceptance.cluster.namespaces import Machine, two_machines
from acceptance.cluster.network import KEY
from tests.e2e.conftest import SETTLE_S, Server, serve, wait_for
from tests.e2e.logged_process import LoggedProcess


class Node(LoggedProcess):
    """`longspan serve --node-rank 1`, on the other machine."""

    def __init__(self, machine: Machine, master: str, key: Path) -> None:
        command = [sys.executable, "-m", "longspan", "serve", "--nnodes", "2", "--node-rank", "1", "--master", master,
                   "--fleet-key-file", str(key), "--instances", "2", *OPTIONS]  # fmt: skip
        super().__init__(machine.command(*command))


class Pair(Fleet):
    """nodes: that the other machine has been, the last of which runs."""

    def __init__(self, host: Machine, other: Machine, server: Server, nodes: list[Node], key: Path) -> None:
        super().__init__(host, other, server)
        self.nodes, self.key = nodes, key

    def replace_node(self) -> None:
        self.nodes.append(Node(self.other, self.host.address, self.key))


def head(host: Machine, key: Path) -> AbstractContextManager[Server]:
    """`longspan serve --node-rank 0`."""
    return serve("--host", host.address, "--nnodes", "2", "--master", host.address, "--fleet-key-file", str(key),
                 "--api-key", KEY, *OPTIONS, on=host.command())  # fmt: skip


@contextmanager
def pair(folder: Path) -> Iterator[Pair]:
    key = folder / "fleet-key"
    key.write_text("a key for the fleet of these tests")
    with two_machines() as (host, other):
        nodes = [Node(other, host.address, key)]
        try:
            with head(host, key) as server:
                yield Pair(host, other, server, nodes, key)
        finally:
            for node in nodes:
                node.end()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with pair(tmp_path_factory.mktemp("fleet")) as running:
        yield running


def test_it_answers_as_one_machine_does(fleet: Pair, expected: list[str]) -> None:
    assert fleet.ask_all() == expected
    assert fleet.state() == ("serving", 0)


def test_a_cut_cable_costs_the_other_machine_only(fleet: Pair, expected: list[str]) -> None:
    """Nobody is told. Answers under way go on; then the cable is plugged in, and all is as before."""
    _, restarts = fleet.state()
    asked = Asked(fleet)
    fleet.other.cut()
    try:
        assert asked.answers() == expected
        wait_for(lambda: fleet.state()[0] != "serving")  # where they needed it no more, it is noticed later
        assert fleet.health() == "degraded"
    finally:
        fleet.other.plug()
    fleet.wait_until(restarts + 1)
    assert fleet.ask_all() == expected


def test_a_killed_agent_is_replaced(fleet: Pair, expected: list[str]) -> None:
    _, restarts = fleet.state()
    asked = Asked(fleet)
    fleet.nodes[-1].end()
    assert asked.answers() == expected
    fleet.replace_node()
    fleet.wait_until(restarts + 1)
    assert fleet.ask_all() == expected


def test_without_the_key_nobody_joins(fleet: Pair, tmp_path: Path) -> None:
    wrong = tmp_path / "key"
    wrong.write_text("another key, as long as it")
    stranger = Node(fleet.other, fleet.host.address, wrong)
    try:
        assert stranger.process.wait(SETTLE_S) == 2
        stranger.end()
        assert "--fleet-key-file" in "".join(stranger.lines)
    finally:
        stranger.end()
    assert fleet.state()[0] == "serving"


def test_it_ends_with_the_server(fleet: Pair) -> None:
    assert fleet.server.stop() == 0
    assert fleet.nodes[-1].process.wait(SETTLE_S) == 0


def test_a_killed_head_is_waited_for(expected: list[str], tmp_path: Path) -> None:
    """Nothing is left of it, nor a worker on the other machine, whose agent joins the next head, and ends with that."""
    with pair(tmp_path) as fleet:
        node = fleet.nodes[-1].process
        fleet.server.process.kill()
        wait_for(lambda: not fleet.host.processes() and not fleet.other.running("spawn_main"))
        wait_for(lambda: "waiting for the node with --node-rank 0" in fleet.nodes[-1].lines[-1])
        assert node.poll() is None
        with head(fleet.host, fleet.key) as server:
            assert Pair(fleet.host, fleet.other, server, fleet.nodes, fleet.key).ask_all() == expected
            assert server.stop() == 0
        assert node.wait(SETTLE_S) == 0
        wait_for(lambda: not fleet.host.processes() and not fleet.other.processes())
