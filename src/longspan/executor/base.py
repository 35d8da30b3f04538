"""Where workers run. An executor carries commands to instances, and brings back replies and bad news."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from longspan.phases import OnPhase, ignore
from longspan.worker.messages import Command, Ready, Reply


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """The device of all workers, with the smallest of their free memories. Fields as in `Ready`."""

    dtype: str
    device: str
    kv_tokens_fit: int
    processor: str
    kernels: str
    threads: int
    quantization: str
    pp_layers: tuple[int, ...]

    @classmethod
    def of(cls, workers: Sequence[Ready]) -> DeviceInfo:
        first = workers[0]
        return cls(
            first.dtype, first.device, min(worker.kv_tokens_fit for worker in workers),
            first.processor, first.kernels, first.threads, first.quantization, first.pp_layers,
        )  # fmt: skip


class Executor(Protocol):
    """Workers, from start to end.

    Callbacks may come from any thread. `on_failure` comes once, with a message for users; after it the executor
    carries nothing any more.
    """

    def start(
        self, on_reply: Callable[[Reply], None], on_failure: Callable[[str], None], on_phase: OnPhase = ignore
    ) -> DeviceInfo:
        """Start all workers and load the model. Raises ModelError or EngineDeadError."""
        ...

    def allocate_kv(self, num_tokens: int) -> None:
        """Make every instance's KV pool; returns when all are there."""
        ...

    def submit(self, instance: int, command: Command) -> None:
        """Queue a command at every device of an instance."""
        ...

    def close(self) -> None:
        """End all workers. May be called twice."""
        ...
