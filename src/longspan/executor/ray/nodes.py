"""The machines of an engine that Ray finds places for: each has one instance, and an agent that joins as any other.

Ray only places agents and tells of their ends; everything else goes over their lines.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from longspan.config import EngineConfig
from longspan.errors import LongspanError
from longspan.executor.nodes.access import fleet_key, master_address
from longspan.executor.nodes.gathering import Gathering, Nodes
from longspan.executor.nodes.remote import RemoteMachine
from longspan.executor.ray.client import RayClient
from longspan.executor.ray.messages import Add, AgentOrder, Connect, Connected, Lost, Place, Placed, ToEngine
from longspan.executor.reader import Reader
from longspan.executor.restarts import Restarts
from longspan.log_fields import fields
from longspan.phases import OnPhase, Phase

logger = logging.getLogger(__name__)

_AGENT_SETTINGS = (
    "model", "revision", "instances", "tp", "pp", "pp_layers", "dtype", "quantization", "device", "transport",
    "rope_scaling", "kv_tokens", "max_model_len", "executor",
)  # fmt: skip


class RayNodes(Nodes):
    """`Nodes` with a machine for each instance. facts: see `Gathering`."""

    def __init__(self, config: EngineConfig, facts: Mapping[str, str]) -> None:
        key = fleet_key(config) or secrets.token_hex(32).encode()
        super().__init__(Gathering("", 0, key, config.num_instances + 1, facts), config.worker_timeout_s)
        for machine in self.machines:
            machine.name = _name(machine.node)
        self._config = config
        self._connected = threading.Event()
        self._ray_failure: str | None = None
        self._is_started = self._is_leaving = False
        self._client = RayClient(
            Connect(_cluster_of(config), config.ray_timeout_s),
            Restarts(config.max_restarts, config.restart_window_s), self._hear_ray, self._on_ray_failure,
        )  # fmt: skip

    def machine_of(self, instance: int, num_instances: int) -> int:
        return instance + 1

    def machine_for_another(self) -> RemoteMachine:
        node = len(self.machines) + 1
        self.machines.append(RemoteMachine(node, self.token, self._config.worker_timeout_s, _name(node)))
        self._client.send(Add(node))
        return self.machines[-1]

    def open(self, reader: Reader, on_leaving: Callable[[int], None]) -> None:
        """Join Ray, or start it here, and let agents join. Raises LongspanError."""
        self._client.start()
        self._connected.wait()
        self._raise_ray_failure()
        super().open(reader, on_leaving)
        assert self._door is not None
        self._gathering = replace(self._gathering, port=self._door.address[1])
        self._client.send(self._place())

    def wait(self, on_phase: OnPhase, is_over: Callable[[], bool]) -> None:
        """Wait until Ray has found places for all, and all have joined. Raises LongspanError."""
        on_phase(Phase(f"waiting for Ray to place {len(self.machines)} instances"))
        super().wait(on_phase, lambda: is_over() or self._ray_failure is not None)
        if not is_over():
            self._raise_ray_failure()
        self._is_started = True
        self._client.survive()

    def leave(self, timeout_s: float) -> None:
        self._is_leaving = True
        super().leave(timeout_s)
        self._client.end()
        self._client.join()

    def close(self) -> None:
        self._is_leaving = True
        super().close()
        self._client.end()

    def _place(self) -> Place:
        config, where = self._config, self._gathering
        settings: dict[str, Any] = {name: getattr(config, name) for name in _AGENT_SETTINGS}
        if Path(config.model).exists():
            settings["model"] = os.path.abspath(config.model)
        return Place(
            tuple([machine.node for machine in self.machines]),
            AgentOrder(settings, where.address, where.port, where.key.decode()),
            config.num_stages * config.tp, config.threads_per_device, config.ray_placement, config.max_restarts,
            config.restart_window_s, None if self._is_started else config.ray_timeout_s,
        )  # fmt: skip

    def _raise_ray_failure(self) -> None:
        if self._ray_failure is not None:
            raise LongspanError(self._ray_failure)

    # -- on the client's thread -----------------------------------------------------------------------------------

    def _hear_ray(self, message: ToEngine) -> None:
        match message:
            case Connected(address):
                self._on_connected(address)
            case Placed(machine, address, cpus):
                told = "Ray has placed instance %d on %s; its CPUs there: %d"
                logger.info(told, machine - 1, address, cpus, extra=fields(instance=machine - 1))
            case Lost(machine, why) if not self._is_started:
                self._on_ray_failure(f"{_name(machine)} has ended: {why}")
            case Lost(machine, why, again_s) if not self._is_leaving:
                told = "%s has ended: %s. Ray is asked for another in %g s"
                logger.warning(told, _name(machine), why, again_s, extra=fields(instance=machine - 1))

    def _on_connected(self, address: str) -> None:
        if self._connected.is_set():  # once more
            self._client.send(self._place())
            return
        port = 0
        if self._config.master is not None:
            address, port = master_address(self._config)
        self.address, self._gathering = address, replace(self._gathering, address=address, port=port)
        self._connected.set()

    def _on_ray_failure(self, why: str) -> None:
        self._ray_failure = self._ray_failure or why
        self._connected.set()


def _name(machine: int) -> str:
    return f"Ray's actor of instance {machine - 1}"


def _cluster_of(config: EngineConfig) -> str | None:
    """The address of the cluster to join; None where one is started."""
    address = config.ray_address or os.environ.get("RAY_ADDRESS") or "local"
    return None if address == "local" else address
