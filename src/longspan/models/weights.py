"""Weights by their Hugging Face names, whatever they are stored in; each process reads only its share."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from longspan.errors import ModelError
from longspan.models.architecture import ModelConfig


class WeightSource(Protocol):
    """A stored model."""

    def read(self, name: str, rows: slice | None = None, columns: slice | None = None) -> Tensor:
        """The named tensor, or a part of it, in any floating-point dtype, on the CPU.

        `rows` cuts the first dimension, `columns` the second; None takes all. The rest is not read.
        Raises ModelError, naming the tensor, where it is missing.
        """
        ...


def open_weights(path: Path | str, config: ModelConfig) -> WeightSource:
    """`path`: a folder with safetensors files, or a .gguf file."""
    path = Path(path)
    if path.is_dir():
        from longspan.models.safetensors_weights import SafetensorsWeights

        return SafetensorsWeights(path)
    from longspan.models.gguf_weights import GGUFWeights

    return GGUFWeights(path, head_dim=config.head_dim)


class CheckedReader:
    """Reads parts of a source as they are needed here: shape checked, in the model's dtype, on its device."""

    def __init__(self, source: WeightSource, dtype: torch.dtype, device: torch.device) -> None:
        self.source = source
        self.dtype = dtype
        self.device = device

    def __call__(
        self, name: str, *shape: int, rows: slice | None = None, columns: slice | None = None
    ) -> Tensor:
        """`shape` is that of the part asked for."""
        part = self.source.read(name, rows, columns)
        if tuple(part.shape) != shape:
            raise ModelError(f"tensor {name} has shape {tuple(part.shape)} where the config asks for {shape}")
        return part.to(self.device, self.dtype)
