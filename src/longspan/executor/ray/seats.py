"""The places that Ray gives to agents: one for each machine of the engine, asked for anew whenever an agent is lost.

Here alone Ray is spoken to, but for joining it (`driver.py`).
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from longspan import __version__
from longspan.executor.ray.actor import InstanceActor
from longspan.executor.ray.messages import Failed, Lost, Place, Placed, ToEngine, encode
from longspan.executor.ray.plan import RayNode, even_threads, place, told_of_room
from longspan.executor.restarts import LONGEST_S, Restarts

_PATTERNS = {"spread": "SPREAD", "pack": "DEFAULT"}
"""How Ray chooses for itself, where no node has room yet."""


class Seat:
    """Of one machine. node: where its agent is, or shall be; empty where Ray chooses. awaited: what the actor answers
    next; None: it is asked for at `due`."""

    def __init__(self, machine: int, restarts: Restarts, node: str = "") -> None:
        self.machine = machine
        self.restarts = restarts
        self.node = node
        self.due = 0.0
        self.actor: Any = None
        self.awaited: Any = None
        self.has_begun = False


class Seats:
    """All of them. tell: hears what becomes of them."""

    def __init__(self, told: Place, tell: Callable[[ToEngine], None]) -> None:
        nodes, number = cluster(), len(told.machines)
        self.threads = told.threads or even_threads(nodes, number, told.devices, told.how)
        self._cpus = told.devices * self.threads
        self._told, self._tell = told, tell
        self._deadline = math.inf if told.timeout_s is None else time.monotonic() + told.timeout_s
        self._hosts = {node.id: number for number, node in enumerate(nodes, start=1)}
        self._unplaced = set(told.machines)
        placed = place(nodes, {}, number, self._cpus, told.how) or [""] * number
        self._seats = [
            Seat(machine, Restarts(told.max_restarts, told.window_s), node)
            for machine, node in zip(told.machines, placed, strict=True)
        ]

    def add(self, machine: int) -> None:
        """Have one more."""
        self._seats.append(Seat(machine, self._seats[0].restarts.of_another(), self._node_for_another()))

    def look(self, timeout_s: float) -> Failed | None:
        """Ask for what is due, and hear what has become of the others, for so long. Returns why there is no room."""
        now = time.monotonic()
        for seat in self._seats:
            if seat.awaited is None and seat.due <= now:
                self._ask(seat)
        seats = {seat.awaited: seat for seat in self._seats if seat.awaited is not None}
        if seats:
            answered, _ = ray.wait(list(seats), num_returns=1, timeout=timeout_s, fetch_local=False)
            for one in answered:
                self._take(seats[one])
        else:
            time.sleep(timeout_s)
        if self._unplaced and now > self._deadline:
            told = self._told
            return Failed(
                told_of_room(cluster(), len(self._unplaced), len(told.machines), told.devices, self.threads)
            )
        return None

    def end(self) -> None:
        """Have all agents ended."""
        for seat in self._seats:
            if seat.actor is not None:
                ray.kill(seat.actor)

    def _ask(self, seat: Seat) -> None:
        where: Any = _PATTERNS[self._told.how]
        if seat.node:  # or elsewhere, should others have been faster
            where = NodeAffinitySchedulingStrategy(seat.node, soft=True, _spill_on_unavailable=True)
        actor = ray.remote(InstanceActor).options(num_cpus=self._cpus, max_restarts=0, scheduling_strategy=where)
        seat.actor, seat.has_begun = actor.remote(), False
        seat.awaited = seat.actor.begin.remote(__version__)

    def _take(self, seat: Seat) -> None:
        awaited, seat.awaited = seat.awaited, None
        try:
            answer = ray.get(awaited)
        except RayError as error:
            self._lose(seat, in_a_line(error))
            return
        if seat.has_begun:
            code, said = answer
            self._lose(seat, f"its agent has ended with status {code}: {said}")
            return
        seat.node, address, wrong = answer
        if wrong:
            self._lose(seat, f"{address} is of no use: {wrong}")
            return
        seat.has_begun = True
        self._unplaced.discard(seat.machine)
        host = self._hosts.setdefault(seat.node, len(self._hosts) + 1)
        order = msgspec.structs.replace(
            self._told.order, node=seat.machine, own_host=host, threads=self.threads
        )
        seat.awaited = seat.actor.run.remote(encode(order))
        self._tell(Placed(seat.machine, address, self._cpus))

    def _lose(self, seat: Seat, why: str) -> None:
        """What is left of it is ended: if Ray cannot reach it, it may be there all the same."""
        ray.kill(seat.actor)
        seat.actor, seat.node = None, ""
        delay_s = seat.restarts.delay_s(time.monotonic())
        again_s = LONGEST_S if delay_s is None else delay_s
        seat.due = time.monotonic() + again_s
        self._tell(Lost(seat.machine, why, again_s))
        seat.node = self._node_for_another()

    def _node_for_another(self) -> str:
        counts = Counter(seat.node for seat in self._seats if seat.node)
        (node,) = place(cluster(), counts, 1, self._cpus, self._told.how) or [""]
        return node


def cluster() -> Sequence[RayNode]:
    """Return the nodes that live, in order of their addresses, so that neighbours are so in every plan."""
    from ray._private.state import available_resources_per_node  # Ray has no other way to ask

    free = available_resources_per_node()
    nodes = [
        RayNode(
            node["NodeID"], node["NodeManagerAddress"], free.get(node["NodeID"], {}).get("CPU", 0.0),
            node["Resources"].get("CPU", 0.0),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]  # fmt: skip
    return sorted(nodes, key=lambda node: (node.address, node.id))


def in_a_line(error: BaseException, most: int = 600) -> str:
    """Return what an error says, in one line and not too long."""
    line = " ".join(str(error).split()) or type(error).__name__
    return line if len(line) <= most else f"{line[: most // 2]} ... {line[-most // 2 :]}"  # a traceback ends with it
