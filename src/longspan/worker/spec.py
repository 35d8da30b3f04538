"""What a worker is told of itself before it starts. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from longspan.config import Device, DType, Quantization, TransportName
from longspan.worker.messages import Command, Migrate, Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The machine that a worker is on, where there are several.

    node: its number. address: by which the others reach it. token: what their workers show to those of this one.
    local_rank, local_size: of the worker among those of this machine.
    """

    node: int
    address: str
    token: bytes
    local_rank: int
    local_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """The specification of a worker: one device of one stage of one instance, and the model that it loads its share of.

    pp_layers: of each stage; None until they are balanced.
    rope_scaling: see `EngineConfig`.
    shares_devices: all instances are on the same devices, as threads of one process may be.
    rendezvous_port: where workers that meet through torch.distributed do so, on the loopback interface.
    host: None where this machine has all workers.
    """

    model_path: str
    instance: int
    tp_rank: int
    num_instances: int
    tp: int
    stage: int = 0
    pp: int = 1
    pp_layers: tuple[int, ...] | None = None
    dtype: DType
    device: Device
    threads: int | None
    transport: TransportName = "auto"
    quantization: Quantization = "auto"
    rope_scaling: str | None = None
    shares_devices: bool = False
    rendezvous_port: int | None = None
    host: Host | None = None

    @property
    def devices_wanted(self) -> int:
        """The number of devices wanted of this machine."""
        return self.local_size // self.num_instances if self.shares_devices else self.local_size

    @property
    def local_rank(self) -> int:
        """The worker's rank among those of its machine."""
        return self.rank if self.host is None else self.host.local_rank

    @property
    def local_size(self) -> int:
        """The number of workers of its machine."""
        return self.world_size if self.host is None else self.host.local_size

    @property
    def rank(self) -> int:
        return self.rank_at(self.instance, self.stage)

    def rank_at(self, instance: int, stage: int) -> int:
        """Return the rank of the device with the same tensor-parallel rank there."""
        return (instance * self.pp + stage) * self.tp + self.tp_rank

    @property
    def is_last_stage(self) -> bool:
        return self.stage == self.pp - 1

    @property
    def world_size(self) -> int:
        return self.num_instances * self.pp * self.tp

    @property
    def name(self) -> str:
        stage = f", stage {self.stage}" if self.pp > 1 else ""
        return f"worker {self.rank} (instance {self.instance}{stage}, tensor-parallel rank {self.tp_rank})"

    def answers(self, command: Command) -> bool:
        """Tell whether it answers for its instance. Workers are first in, first out: the last stage is done last."""
        if self.tp_rank > 0:
            return False
        if self.is_last_stage:
            return isinstance(command, Run | Migrate)
        return self.stage == 0 and isinstance(command, Run)
