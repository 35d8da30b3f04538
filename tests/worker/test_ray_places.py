"""Which node of Ray gets which instance, and the process that speaks to Ray: a stand-in, so that Ray is not needed."""

from __future__ import annotations

import queue
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from longspan.config import EngineConfig, RayPlacement
from longspan.core.policies import create_policy
from longspan.engine.preflight import check_settings
from longspan.errors import ConfigError
from longspan.executor.ray.client import RayClient
from longspan.executor.ray.messages import Add, Connect, Connected, Lost, ToEngine
from longspan.executor.ray.plan import RayNode, even_threads, place, told_of_room
from longspan.executor.restarts import Restarts

WITHIN_S = 30.0
ALIKE = [RayNode("a", "10.0.0.1", 8.0, 8.0), RayNode("b", "10.0.0.2", 8.0, 8.0)]
UNLIKE = [RayNode("a", "10.0.0.1", 2.0, 8.0), RayNode("b", "10.0.0.2", 7.0, 8.0), RayNode("c", "10.0.0.3", 0.0, 8.0)]


@pytest.mark.parametrize(
    ("nodes", "number", "cpus", "how", "placed"),
    [
        (ALIKE, 4, 2, "spread", "aabb"),
        (ALIKE, 3, 2, "spread", "aab"),
        (ALIKE, 4, 2, "pack", "aaaa"),
        (ALIKE, 6, 2, "pack", "aaaabb"),
        (UNLIKE, 3, 2, "spread", "abb"),
        (UNLIKE, 3, 2, "pack", "bbb"),
        (UNLIKE, 1, 3, "spread", "b"),
        (UNLIKE, 5, 2, "spread", None),
        (UNLIKE, 1, 8, "pack", None),  # all of an instance is on one node
        ([], 1, 1, "spread", None),
    ],
)
def test_places(nodes: list[RayNode], number: int, cpus: int, how: RayPlacement, placed: str | None) -> None:
    """Neighbours are together, and no node gets more than it has room for."""
    found = place(nodes, {}, number, cpus, how)
    assert (None if found is None else "".join(found)) == placed


def test_another_goes_where_few_or_many_are() -> None:
    there = {"a": 2, "b": 1}
    assert place(ALIKE, there, 1, 1, "spread") == ["b"]
    assert place(ALIKE, there, 1, 1, "pack") == ["a"]


def test_threads_are_an_even_share_of_what_is_free() -> None:
    assert even_threads(ALIKE, 2, 1, "spread") == 8
    assert even_threads(ALIKE, 2, 2, "spread") == 4  # two devices of each
    assert even_threads(ALIKE, 2, 1, "pack") == 4
    assert even_threads(UNLIKE, 2, 1, "spread") == 2  # all alike, as the busiest node allows
    assert even_threads(UNLIKE, 99, 1, "spread") == 1
    for number, how in ((1, "spread"), (3, "spread"), (5, "pack")):
        threads = even_threads(UNLIKE, number, 1, how)  # type: ignore[arg-type]
        assert place(UNLIKE, {}, number, threads, how) is not None  # type: ignore[arg-type]


def test_what_was_asked_and_what_there_is_are_told() -> None:
    told = told_of_room(UNLIKE, 2, 5, 2, 3)
    for part in ("2 of 5 instances", "on one node: 6", "10.0.0.1 has 2 of 8 CPUs free", "--threads-per-device"):
        assert part in told


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"executor": "ray", "nnodes": 2, "master": "10.0.0.1"}, "nnodes is 2"),
        ({"executor": "ray", "device": "cuda"}, "only CPU workers"),
        ({"executor": "ray", "transport": "gloo"}, "only CPU workers"),
        ({"executor": "ray", "ray_address": "ray://10.0.0.1:10001"}, "HOST:PORT"),
        ({"ray_address": "auto"}, "needs executor ray"),
        ({"executor": "ray", "ray_placement": "strict"}, "spread, pack"),
        ({"executor": "ray", "ray_timeout_s": 0.0}, "above 0"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        EngineConfig(**settings)  # type: ignore[arg-type]


def test_without_ray_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not (Path(path) / "ray").is_dir()])
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    config = EngineConfig(executor="ray")
    with pytest.raises(ConfigError, match=r"longspan\[ray\]"):
        check_settings(config, create_policy(config.policy))


# -- the process that speaks to Ray ------------------------------------------------------------------------------------

STAND_IN = """
import sys
from longspan.executor.ray.messages import Add, Connect, Connected, Failed, Lost, decode_to_driver, encode

def tell(message):
    sys.stdout.buffer.write(encode(message) + b"\\n")
    sys.stdout.flush()

for line in sys.stdin.buffer:
    match decode_to_driver(line):
        case Connect("nowhere"):
            tell(Failed("nobody is there"))
            break
        case Connect(address, 1.0):
            tell(Connected(address))
        case Add(0):
            sys.exit("it is broken")
        case Add(machine):
            tell(Lost(machine, "it fell over", 0.5))
"""


class Heard:
    def __init__(self) -> None:
        self.messages: queue.SimpleQueue[ToEngine] = queue.SimpleQueue()
        self.failures: queue.SimpleQueue[str] = queue.SimpleQueue()


@contextmanager
def client(address: str) -> Iterator[tuple[RayClient, Heard]]:
    heard = Heard()
    running = RayClient(
        Connect(address, 1.0), Restarts(2, 600.0), heard.messages.put, heard.failures.put,
        (sys.executable, "-c", STAND_IN),
    )  # fmt: skip
    running.start()
    try:
        yield running, heard
    finally:
        running.end()
        running.join()


def test_it_hears_and_is_told() -> None:
    with client("here") as (running, heard):
        assert heard.messages.get(timeout=WITHIN_S) == Connected("here")
        running.send(Add(3))
        assert heard.messages.get(timeout=WITHIN_S) == Lost(3, "it fell over", 0.5)


@pytest.mark.parametrize(("address", "told"), [("nowhere", "nobody is there"), ("here", "it is broken")])
def test_what_fails_before_the_engine_has_started_is_told(address: str, told: str) -> None:
    with client(address) as (running, heard):
        if address == "here":
            heard.messages.get(timeout=WITHIN_S)
            running.send(Add(0))
        assert told in heard.failures.get(timeout=WITHIN_S)


def test_one_that_is_lost_later_is_replaced() -> None:
    with client("here") as (running, heard):
        for _ in range(2):
            assert heard.messages.get(timeout=WITHIN_S) == Connected("here")
            running.survive()
            running.send(Add(0))
        assert heard.messages.get(timeout=WITHIN_S) == Connected("here")
        assert heard.failures.empty()


