"""Weights by their Hugging Face names, whatever they are stored in; each process reads only its share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from longspan.errors import ModelError
from longspan.layers.linear import Linear, linear
from longspan.layers.quantized_linear import QuantizedMatrix, can_quantise, quantised_int8, quantized_linear
from longspan.models.architecture import ModelConfig

WeightFormat = Literal["none", "gguf", "int8"]
"""What the matrices of a model are kept in; see `CheckedReader`."""


class WeightSource(Protocol):
    """A stored model."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the tensor's shape. Raises ModelError, naming it: it is missing, or of a type that does not run."""
        ...

    def read(self, name: str, rows: slice | None = None, columns: slice | None = None) -> Tensor:
        """Return the named tensor, or a part of it, in any floating-point dtype, on the CPU.

        `rows` cuts the first dimension, `columns` the second; None takes all. The rest is not read.
        Raises ModelError, naming the tensor, where it is missing.
        """
        ...


@runtime_checkable
class QuantizedSource(WeightSource, Protocol):
    """A stored model of quantised matrices."""

    def read_quantized(
        self, name: str, rows: slice | None = None, columns: slice | None = None
    ) -> QuantizedMatrix | None:
        """Read it as it is stored; None where no kernel reads it so. Raises ModelError where it is missing."""
        ...


def open_weights(path: Path | str, config: ModelConfig) -> WeightSource:
    """Open `path`, a folder with safetensors files, or a .gguf file."""
    path = Path(path)
    if path.is_dir():
        from longspan.models.safetensors_weights import SafetensorsWeights

        return SafetensorsWeights(path)
    from longspan.models.gguf_weights import GGUFWeights

    return GGUFWeights(path, head_dim=config.head_dim)


@dataclass(frozen=True, slots=True)
class MatrixPart:
    """The part to read of a stored matrix, and its shape then."""

    name: str
    outputs: int
    inputs: int
    rows: slice | None = None
    columns: slice | None = None


class CheckedReader:
    """Reads parts of a source as they are needed here: shape checked, in the model's dtype, on its device.

    weight_format: of the matrices. `gguf`: as a GGUF file stores them, where a kernel reads them so; `int8`: quantised
    here, where the inputs make whole groups; `none`, and everything else: plain.
    """

    def __init__(
        self, source: WeightSource, dtype: torch.dtype, device: torch.device, weight_format: WeightFormat = "none"
    ) -> None:
        self.source = source
        self.dtype = dtype
        self.device = device
        self.weight_format = weight_format

    def __call__(
        self, name: str, *shape: int, rows: slice | None = None, columns: slice | None = None
    ) -> Tensor:
        """Return a tensor, or a part of it; `shape` is that of the part asked for."""
        return self.plain(_checked(name, self.source.read(name, rows, columns), shape))

    def plain(self, weight: Tensor | QuantizedMatrix) -> Tensor:
        """Return it in the model's dtype, on its device."""
        return (weight.dequantised() if isinstance(weight, QuantizedMatrix) else weight).to(self.device, self.dtype)

    def matrix(self, *parts: MatrixPart) -> Tensor | QuantizedMatrix:
        """Return the parts' outputs, one below the other, in the weight format."""
        quantized = self._quantized(parts)
        if quantized is not None:
            return quantized
        plain = [self(part.name, part.outputs, part.inputs, rows=part.rows, columns=part.columns) for part in parts]
        return torch.cat(plain) if len(plain) > 1 else plain[0]

    def linear(self, weight: Tensor | QuantizedMatrix, bias_O: Tensor | None = None) -> Linear:
        """Return what multiplies by such a matrix."""
        if isinstance(weight, QuantizedMatrix):
            return quantized_linear(weight, self.dtype, bias_O)
        return linear(weight, bias_O)

    def _quantized(self, parts: Sequence[MatrixPart]) -> QuantizedMatrix | None:
        """None: one of the parts has to be plain, or they do not go together."""
        read: list[QuantizedMatrix] = []
        for part in parts:
            matrix = self._quantized_part(part)
            if matrix is None:
                return None
            read.append(_checked(part.name, matrix, (part.outputs, part.inputs)))
        return QuantizedMatrix.stacked(read)

    def _quantized_part(self, part: MatrixPart) -> QuantizedMatrix | None:
        if self.weight_format == "gguf" and isinstance(self.source, QuantizedSource):
            return self.source.read_quantized(part.name, part.rows, part.columns)
        if self.weight_format == "int8" and can_quantise(part.inputs):
            plain_OI = self.source.read(part.name, part.rows, part.columns)
            return quantised_int8(_checked(part.name, plain_OI, (part.outputs, part.inputs)))
        return None


Stored = TypeVar("Stored", Tensor, QuantizedMatrix)


def _checked(name: str, part: Stored, shape: tuple[int, ...]) -> Stored:
    if tuple(part.shape) != shape:
        raise ModelError(f"tensor {name} has shape {tuple(part.shape)} where the config asks for {shape}")
    return part
