"""What travels between the engine and its workers: plain data, msgpack on the wire. No torch.

Commands of one worker are carried out first in, first out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

from longspan.config import Device, DType, Quantization, TransportName
from longspan.core.actions import FreeKV, MigrateKV, RunBatch
from longspan.worker.sampling_state import SampledToken, SamplingState


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """The specification of a worker: one device of one stage of one instance, and the model that it loads its share of.

    pp_layers: of each stage; None until they are balanced.
    shares_devices: all instances are on the same devices, as threads of one process may be.
    rendezvous_port: where workers that meet through torch.distributed do so, on the loopback interface.
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
    shares_devices: bool = False
    rendezvous_port: int | None = None

    @property
    def devices_wanted(self) -> int:
        """The number of devices wanted of this machine."""
        return self.world_size // self.num_instances if self.shares_devices else self.world_size

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


class AllocateKV(msgspec.Struct, frozen=True, tag=True):
    """Make the KV pool; the first command, sent once all workers are ready."""

    num_tokens: int


class Run(msgspec.Struct, frozen=True, tag=True):
    """Run a batch.

    token_ids: for each segment its tokens (int32, little endian); a segment without them is one token long and goes
        on from the token that this worker sampled last for the request.
    sampling: for each request that this worker begins to emit tokens of, how to sample them.
    """

    batch: RunBatch
    token_ids: dict[str, bytes]
    sampling: dict[str, SamplingState]


class Migrate(msgspec.Struct, frozen=True, tag=True):
    """Move KV; sent to the source and to the target."""

    action: MigrateKV


class Free(msgspec.Struct, frozen=True, tag=True):
    """Free KV of a residence."""

    action: FreeKV


class Forget(msgspec.Struct, frozen=True, tag=True):
    """Forget how a request's tokens are sampled."""

    request_id: str


class Stop(msgspec.Struct, frozen=True, tag=True):
    """End the worker."""


Command = AllocateKV | Run | Migrate | Free | Forget | Stop


class Loading(msgspec.Struct, frozen=True, tag=True):
    """The progress of a worker with a step of its start. done, total: parts of its share; 0 of 0 is unknown."""

    step: Literal["kernels", "weights"]
    done: int = 0
    total: int = 0


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The model is loaded. kv_tokens_fit: how many tokens of KV the device's free memory would take.

    processor: what the device calls itself. kernels: which of ours it runs, or whose instead. threads: on the CPU.
    quantization: what the weights are kept in, once `auto` is decided. pp_layers: of each pipeline stage.
    """

    dtype: str
    device: str
    kv_tokens_fit: int
    processor: str
    kernels: str
    threads: int
    quantization: str
    pp_layers: tuple[int, ...]


class KVAllocated(msgspec.Struct, frozen=True, tag=True):
    """The pool is there."""


class BatchDone(msgspec.Struct, frozen=True, tag=True):
    """This instance's part of a batch is done: its device has come to the end of it.

    tokens: what was sampled here, by request. model_s: seconds inside the model, on the device's clock; total_s: in the
        worker, on the host's.
    not_finite: requests that got no token here, since their logits are not finite.
    """

    batch_id: int
    instance: int
    tokens: dict[str, SampledToken]
    model_s: float
    total_s: float
    not_finite: tuple[str, ...] = ()


class FirstStageDone(msgspec.Struct, frozen=True, tag=True):
    """This instance's first pipeline stage begins the last layer of its part of a batch, and is about to be free.

    What is sent to it now waits for it, not the other way round.
    """

    batch_id: int
    instance: int


class MigrationDone(msgspec.Struct, frozen=True, tag=True):
    """This instance's part of a migration is done."""

    migration_id: int
    instance: int


class Beat(msgspec.Struct, frozen=True, tag=True):
    """A sign of life. `progress` grows with every layer, and with the time that the worker computes."""

    progress: int


class Log(msgspec.Struct, frozen=True, tag=True):
    """A line for the engine's log. level, logger: as in Python's logging."""

    level: int
    logger: str
    text: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The worker met an error and ends."""

    message: str


Reply = Loading | Ready | KVAllocated | FirstStageDone | BatchDone | MigrationDone | Beat | Log | Failed

_encoder = msgspec.msgpack.Encoder()
_commands = msgspec.msgpack.Decoder(Command)
_replies = msgspec.msgpack.Decoder(Reply)


def encode(message: Command | Reply) -> bytes:
    return _encoder.encode(message)


def decode_command(data: bytes) -> Command:
    command: Command = _commands.decode(data)
    return command


def decode_reply(data: bytes) -> Reply:
    reply: Reply = _replies.decode(data)
    return reply
