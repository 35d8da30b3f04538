"""The other machines of an engine: their agents call here, and are taken if they are what is wanted."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from longspan.door import Door
from longspan.errors import LongspanError
from longspan.executor.machine import node_of
from longspan.executor.nodes.line import Line, LineRefusedError, answer
from longspan.executor.nodes.messages import Join, Refused, decode_to_engine, encode
from longspan.executor.nodes.remote import RemoteMachine
from longspan.executor.reader import Reader
from longspan.phases import OnPhase, Phase

logger = logging.getLogger(__name__)

_LOOK_S = 0.2
_TOKEN_BYTES = 32


@dataclass(frozen=True, slots=True)
class Gathering:
    """Where machines meet. facts: what has to be the same on all, by what it is called, as it is here."""

    address: str
    port: int
    key: bytes
    nnodes: int
    facts: Mapping[str, str]


class Nodes:
    """All machines but this one, by their numbers from 1. timeout_s: see `RemoteMachine`."""

    def __init__(self, gathering: Gathering, timeout_s: float) -> None:
        self.address, self.token = gathering.address, os.urandom(_TOKEN_BYTES)
        self.machines = [RemoteMachine(node, self.token, timeout_s) for node in range(1, gathering.nnodes)]
        self._gathering = gathering
        self._door: Door | None = None
        self._is_closed = False

    def machine_of(self, instance: int, num_instances: int) -> int:
        """Return the number of the machine that an instance is started on at first."""
        return node_of(instance, num_instances, len(self.machines) + 1)

    def machine_for_another(self) -> RemoteMachine | None:
        """Return a machine that has been made for one instance more; None: one of those that are there takes it."""
        return None

    def open(self, reader: Reader, on_leaving: Callable[[int], None]) -> None:
        """Let machines join from now on. on_leaving: hears which has been told to stop, on any thread.

        Raises LongspanError.
        """
        self._reader, self._on_leaving = reader, on_leaving
        address, port = self._gathering.address, self._gathering.port
        try:
            self._door = Door(address, port, self._greet)
        except OSError as error:
            raise LongspanError(
                f"cannot listen for other nodes on {address}, port {port}: {error.strerror}; --master is the address "
                "of the node with --node-rank 0"
            ) from error

    def wait(self, on_phase: OnPhase, is_over: Callable[[], bool]) -> None:
        """Wait until all have joined, or is_over."""
        told: list[str] = []
        while not is_over():
            for machine in self.machines:
                machine.check(time.monotonic())
                machine.welcome()
            missing = [machine.name for machine in self.machines if not machine.is_there]
            if not missing:
                return
            if missing != told:
                names, told = ", ".join(missing), missing
                on_phase(Phase(f"waiting for {names} to join at {self.address}, port {self._gathering.port}"))
            time.sleep(_LOOK_S)

    def check(self, now: float, late_s: float) -> tuple[list[tuple[int, str]], list[int]]:
        """Return which machines are lost, and why, and which are there again; on the reader's thread."""
        lost = [
            (machine.node, f"{machine.name} is lost: {why}")
            for machine in self.machines
            if (why := machine.check(now, late_s)) is not None
        ]
        # One that is lost is welcomed the next time: what went with it has to be known to be lost before.
        back = [machine.node for machine in self.machines if machine.node not in dict(lost) and machine.welcome()]
        return lost, back

    def leave(self, timeout_s: float) -> None:
        """The engine ends in good order: so do all."""
        self._close_door()
        leaving = [threading.Thread(target=machine.leave, args=(timeout_s,)) for machine in self.machines]
        for thread in leaving:
            thread.start()
        for thread in leaving:
            thread.join()

    def close(self) -> None:
        """Hang up. May be called twice."""
        self._close_door()
        for machine in self.machines:
            machine.close()

    def _close_door(self) -> None:
        self._is_closed = True
        if self._door is not None:
            self._door.close()

    def _greet(self, caller: socket.socket) -> None:
        try:
            line = answer(caller, self._gathering.key)
        except LineRefusedError as error:
            logger.warning("a node that would join is refused: %s", error)
            return
        except (OSError, EOFError):
            return  # it has gone, or says nothing
        try:
            join = decode_to_engine(line.receive())
        except (OSError, EOFError, LongspanError, msgspec.MsgspecError) as error:
            logger.warning("a node at %s would join, and cannot say so: %s", line.peer, error)
            line.close()
            return
        if isinstance(join, Join):
            self._take(join, line)
        else:
            line.close()

    def _take(self, join: Join, line: Line) -> None:
        if (why := self._objection(join)) is not None:
            logger.warning("node %d at %s is refused: %s", join.node, line.peer, why)
            with suppress(OSError):
                line.send_bytes(encode(Refused(why)))
            line.close()
        elif self._is_closed:
            line.close()
        else:
            node = join.node
            host = node if join.host is None else join.host
            self.machines[node - 1].offer(line, self._reader, lambda: self._on_leaving(node), host)

    def _objection(self, join: Join) -> str | None:
        if not 1 <= join.node <= len(self.machines):
            return f"its node_rank is {join.node}, but with nnodes {len(self.machines) + 1} it must lie in [1, " \
                   f"{len(self.machines)}]"  # fmt: skip
        facts = self._gathering.facts
        differing = [
            f"{name} is {join.facts.get(name, 'not told')} there, and {facts.get(name, 'not told')} on node 0"
            for name in sorted(facts.keys() | join.facts.keys())
            if join.facts.get(name) != facts.get(name)
        ]
        if not differing:
            return None
        return f"{'; '.join(differing)}. Start all nodes with the same version, model and settings"
