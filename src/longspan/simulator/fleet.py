"""What is simulated: a model, cut up, on as many devices of one kind. Impossible ones are refused."""

from __future__ import annotations

from dataclasses import dataclass

from longspan.core.costs.analytic import ModelShape
from longspan.errors import ConfigError
from longspan.simulator.machine import GIB, Machine

MEMORY_SHARE = 0.9
"""Of a device's memory that is used at all (assumed; what vLLM calls gpu_memory_utilization)."""
RESERVED_BYTES = 2.0 * GIB
"""Of each device, for activations and the runtime (assumed)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedModel:
    """A model to simulate.

    shape: as in the analytic cost model. tied: the output head is the embedding, and is stored once.
    max_model_len: longest prompt and output together, tokens.
    """

    name: str
    shape: ModelShape
    max_model_len: int
    tied: bool = False

    @property
    def stored_bytes(self) -> float:
        """Bytes of all weights, in one instance."""
        embedding = 0 if self.tied else self.shape.head_parameters
        return self.shape.weights_bytes + self.shape.weight_bytes * embedding


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """`instances` replicas of a model, each of `pp` pipeline stages, each tensor-parallel over `tp` devices.

    Instance i has devices i*pp*tp and on, stage by stage.

    Raises ConfigError: this cannot be.
    """

    machine: Machine
    model: SimulatedModel
    instances: int
    tp: int = 1
    pp: int = 1

    def __post_init__(self) -> None:
        for name, value in (("instances", self.instances), ("tp", self.tp), ("pp", self.pp)):
            if value < 1:
                raise ConfigError(f"{name} is {value}, but must be at least 1")
        shape = self.model.shape
        if self.pp > shape.num_layers:
            raise ConfigError(f"pp is {self.pp}, but {self.model.name} has only {shape.num_layers} layers")
        if shape.num_heads % self.tp or shape.num_kv_heads % self.tp:
            raise ConfigError(
                f"tp is {self.tp}, but must divide the {shape.num_heads} query heads and {shape.num_kv_heads} KV "
                f"heads of {self.model.name}"
            )
        per_node = self.machine.sheet.devices_per_node
        if self.tp > per_node or per_node % self.tp:
            what = "stages" if self.pp > 1 else "instances"
            raise ConfigError(
                f"tp is {self.tp}, but {what} must fit evenly into nodes of {per_node} {self.machine.name}"
            )
        if self.machine.sheet.memory_bytes is not None:
            self.kv_tokens_that_fit()

    @property
    def num_devices(self) -> int:
        return self.instances * self.pp * self.tp

    def kv_tokens_that_fit(self) -> int:
        """Return the KV slots of one instance: what its devices' memory holds beside the weights.

        Raises ConfigError: none at all, or memory is not limited.
        """
        if self.machine.sheet.memory_bytes is None:
            raise ConfigError(f"the memory of {self.machine.name} is not known: give the KV slots of an instance")
        usable = self.pp * self.tp * (MEMORY_SHARE * self.machine.sheet.memory_bytes - RESERVED_BYTES)
        slots = int((usable - self.model.stored_bytes) // self.model.shape.kv_bytes_per_token)
        if slots < 1:
            raise ConfigError(
                f"{self.model.name} does not fit: its weights are {self.model.stored_bytes / GIB:.1f} GiB, but the "
                f"{self.pp * self.tp} x {self.machine.name} of an instance have {usable / GIB:.1f} GiB for weights and "
                f"KV ({MEMORY_SHARE:.0%} of {self.machine.sheet.memory_bytes / GIB:.0f} GiB each, less "
                f"{RESERVED_BYTES / GIB:.0f} GiB); raise tp or pp"
            )
        return slots

    def node(self, instance: int, stage: int = 0) -> int:
        """Return where a stage of an instance stands."""
        return (instance * self.pp + stage) * self.tp // self.machine.sheet.devices_per_node
