"""What is asked of a process that measures how fast workers are, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from longspan.config import Device, DType, Quantization
from longspan.tuning.speed import WorkerSpeed


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSettings:
    """model_path, dtype, device, quantization: as in `WorkerSpec`. weight_bytes: of one copy of the whole model.

    threads: numbers of threads of a worker to measure, each a divisor of the cores.
    """

    model_path: str
    dtype: DType
    device: Device
    quantization: Quantization
    weight_bytes: int
    threads: Sequence[int]


@dataclass(frozen=True, slots=True)
class Probed:
    """speeds: one for each number of threads; none where models run on no CPU.

    is_busy: something else took the same cores meanwhile, so that another time may show other speeds.
    """

    speeds: tuple[WorkerSpeed, ...]
    is_busy: bool
