"""Where workers run. An executor carries commands to instances, and brings back replies and bad news."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from longspan.phases import OnPhase, ignore
from longspan.worker.messages import Command, Ready, Reply
from longspan.worker_usage import WorkerUsage


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


InstanceState = Literal["serving", "starting", "missing", "leaving", "drained", "removed"]
"""The last three are by somebody's wish."""


@dataclass(frozen=True, slots=True)
class InstanceReport:
    """How an instance is. why: what ended its workers last; empty where nothing has. restarts: how often they were
    started again. pids: of its processes, in rank order; none where it has no processes of its own. node: the machine
    that they are on."""

    instance: int
    state: InstanceState
    why: str = ""
    restarts: int = 0
    pids: tuple[int, ...] = ()
    node: int = 0


@dataclass(frozen=True, slots=True)
class LostInstance:
    """An instance's workers have been ended for certain: nothing comes from them any more. The message says why.

    returns: others are to come in their place. Where that has changed, it is told again. failed: a worker ended by a
    fault of its own, which what it ran may have caused.
    """

    instance: int
    message: str
    returns: bool = True
    failed: bool = False


@dataclass(frozen=True, slots=True)
class NewInstance:
    """An instance that was lost has workers again, all others exchange with them, and its pool of so many is empty.

    They get commands from `admit` on: what is sent before was meant for those that are no more.
    """

    instance: int
    kv_tokens: int


@dataclass(frozen=True, slots=True)
class LeavingInstance:
    """An instance's machine has been told to stop: it is to be emptied and ended, and comes again with its machine."""

    instance: int


News = Reply | LostInstance | NewInstance | LeavingInstance


class Executor(Protocol):
    """Workers, from start to end.

    Callbacks may come from any thread. `on_failure` comes once, with a message for users; after it the executor
    carries nothing any more.
    """

    def start(
        self, on_reply: Callable[[News], None], on_failure: Callable[[str], None], on_phase: OnPhase = ignore
    ) -> DeviceInfo:
        """Start all workers and load the model. Raises ModelError or EngineDeadError."""
        ...

    def allocate_kv(self, num_tokens: int) -> None:
        """Make every instance's KV pool; returns when all are there."""
        ...

    def survive_losses(self) -> bool:
        """From now on a lost instance is news (`LostInstance`, `NewInstance`), where the others can go on without it.

        Before, and where they cannot, it is a failure. The pools are there. Returns whether they can.
        """
        ...

    def submit(self, instance: int, command: Command) -> None:
        """Queue a command at every device of an instance."""
        ...

    def admit(self, instance: int) -> None:
        """Let commands through to an instance that is new."""
        ...

    def reports(self) -> list[InstanceReport]:
        """Return how each instance is, in order. Any thread may ask."""
        ...

    def usage(self) -> tuple[WorkerUsage, ...]:
        """Return what each worker that runs said of itself last, in order of their ranks. Any thread may ask."""
        ...

    def end(self, instance: int, why: str, *, again: bool) -> None:
        """End the workers of an instance that holds nothing any more; again: others are to come at once.

        It is told as `LostInstance`.
        """
        ...

    def add(self) -> int:
        """Start the workers of one instance more, and return its number; it is told as `NewInstance`."""
        ...

    def restart(self, instance: int) -> None:
        """Start the workers of an instance that is missing, though it was lost too often."""
        ...

    def close(self) -> None:
        """End all workers. May be called twice."""
        ...
