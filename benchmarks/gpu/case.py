"""What a part of the evidence is made of: cases, each of which gives figures or says why it has none."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from shapes import LLAMA_3_8B, TINY, ModelShape

Figures = dict[str, Any]


class NotHereError(Exception):
    """The machine, its software or its memory has not what the case takes: no failure.

    passing: another call may find it, such as memory or more devices.
    """

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


class WrongError(Exception):
    """The figures are outside what is allowed; they are kept."""

    def __init__(self, message: str, figures: Figures) -> None:
        super().__init__(message)
        self.figures = figures


@dataclass(frozen=True)
class Case:
    """name: unique in its part; results are kept under it."""

    name: str
    run: Callable[[], Figures]

    @property
    def seed(self) -> int:
        """Of the case's random inputs, which are the same in whatever order and process it runs."""
        return int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:4])

    def run_seeded(self) -> Figures:
        torch.manual_seed(self.seed)
        random.seed(self.seed)
        return self.run()


@dataclass(frozen=True)
class Where:
    """The device, and whether the large shapes are asked for or only the tiny ones."""

    device: torch.device
    large: bool

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def shapes(self) -> list[ModelShape]:
        """The tiny one first, so that what cannot run at all costs seconds."""
        return [TINY, LLAMA_3_8B] if self.large else [TINY]

    @property
    def dtypes(self) -> list[torch.dtype]:
        return [torch.float32, torch.bfloat16]


class Part(Protocol):
    """A module of `parts`."""

    BUDGET_S: float

    def cases(self, where: Where) -> Iterator[Case]: ...


def short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
