"""The header of a GGUF file, without reading the weights.

`gguf.GGUFReader` makes numpy objects for each of the tokenizer's strings: seconds of work in every process.
Nothing here needs them (the tokenizer is read elsewhere), so arrays are stepped over: a header takes 0.1 s.
Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from longspan.errors import ModelError

_SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}


_MOST_VALUES, _MOST_TENSORS, _MOST_DIMENSIONS, _DEEPEST = 1 << 16, 1 << 20, 4, 4


@dataclass(frozen=True, slots=True)
class ArrayLength:
    """Stands for an array that was stepped over."""

    length: int


Value = int | float | bool | str | ArrayLength


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One tensor's place. `shape` is torch's, rows first; a row is stored as whole quantisation blocks.

    Raises ValueError where such a tensor cannot be.
    """

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int

    def __post_init__(self) -> None:
        if not 1 <= len(self.shape) <= _MOST_DIMENSIONS or 0 in self.shape:
            raise ValueError(f"tensor {self.name} has the shape {self.shape}")
        if self.shape[-1] % GGML_QUANT_SIZES[self.kind][0]:
            raise ValueError(f"tensor {self.name} has rows of {self.shape[-1]}, which {self.kind.name} cannot store")

    @property
    def num_rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        values, size = GGML_QUANT_SIZES[self.kind]
        return self.shape[-1] // values * size


class GGUFFile:
    """Metadata and tensor directory of one file; `blocks` maps a tensor's bytes into memory when asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, Value] = {}
        self.tensors: dict[str, GGUFTensor] = {}
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                self._read_header(_Cursor(data), len(data))
        except (OSError, struct.error, ValueError, UnicodeDecodeError) as error:
            raise ModelError(
                f"{path} is no readable GGUF file ({error}); if a download was cut short, fetch it again"
            ) from error

    def blocks(self, tensor: GGUFTensor) -> np.memmap[tuple[int, int], np.dtype[np.uint8]]:
        """Return the tensor's stored bytes, one row of the matrix in each row."""
        return np.memmap(self.path, np.uint8, "r", tensor.offset, (tensor.num_rows, tensor.row_bytes))

    def _read_header(self, cursor: _Cursor, file_size: int) -> None:
        if bytes(cursor.take(4)) != b"GGUF":
            raise ValueError("it does not begin with 'GGUF'")
        version = cursor.scalar("I")
        if version not in (2, 3):
            raise ValueError(f"its version reads as {version}; little-endian versions 2 and 3 are understood")
        num_tensors, num_values = cursor.scalar("Q"), cursor.scalar("Q")
        if num_values > _MOST_VALUES or num_tensors > _MOST_TENSORS:
            raise ValueError(f"it claims to hold {num_values} values and {num_tensors} tensors")
        for _ in range(num_values):
            key = cursor.string()
            if key in self.metadata:
                raise ValueError(f"it says {key} twice")
            self.metadata[key] = cursor.value(GGUFValueType(cursor.scalar("I")))
        directory = [_read_tensor_entry(cursor) for _ in range(num_tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        if isinstance(alignment, bool) or not isinstance(alignment, int) or alignment < 1 or alignment & alignment - 1:
            raise ValueError(f"its general.alignment is {alignment}, which is no power of two")
        start = -(-cursor.at // alignment) * alignment
        for name, shape, kind, offset in directory:
            tensor = GGUFTensor(name, shape, kind, start + offset)
            if tensor.offset + tensor.num_rows * tensor.row_bytes > file_size:
                raise ValueError(f"tensor {name} ends beyond the file")
            if name in self.tensors:
                raise ValueError(f"tensor {name} is there twice")
            self.tensors[name] = tensor


def _read_tensor_entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
    name, dimensions = cursor.string(), cursor.scalar("I")
    if dimensions > _MOST_DIMENSIONS:
        raise ValueError(f"tensor {name} has {dimensions} dimensions")
    sizes = [cursor.scalar("Q") for _ in range(dimensions)]
    kind = GGMLQuantizationType(cursor.scalar("I"))
    return name, tuple(reversed(sizes)), kind, cursor.scalar("Q")


class _Cursor:
    """Reads values one after the other. A read beyond the end raises struct.error."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0

    def scalar(self, code: str) -> int:
        value: int
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def take(self, size: int) -> bytes:
        self.skip(size)
        return self.data[self.at - size : self.at]

    def skip(self, size: int) -> None:
        if size > len(self.data) - self.at:
            raise struct.error("the file ends early")
        self.at += size

    def string(self) -> str:
        return self.take(self.scalar("Q")).decode("utf-8")

    def value(self, kind: GGUFValueType) -> Value:
        if kind == GGUFValueType.STRING:
            return self.string()
        if kind == GGUFValueType.ARRAY:
            return self._step_over_array(depth=1)
        return self.scalar(_SCALARS[kind])

    def _step_over_array(self, depth: int) -> ArrayLength:
        element, length = GGUFValueType(self.scalar("I")), self.scalar("Q")
        if element in _SCALARS:
            self.skip(length * struct.calcsize("<" + _SCALARS[element]))
            return ArrayLength(length)
        if depth == _DEEPEST:
            raise ValueError(f"arrays lie {depth} deep in each other")
        for _ in range(length):  # each takes some bytes, so that the file's end is the end of it
            if element == GGUFValueType.STRING:
                self.skip(self.scalar("Q"))
            else:
                self._step_over_array(depth + 1)
        return ArrayLength(length)
