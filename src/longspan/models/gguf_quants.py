"""GGUF blocks taken apart, without dequantising them.

Layouts: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h (block_q4_0, block_q4_1, block_q8_0).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from gguf.constants import GGMLQuantizationType as Kind
from numpy.typing import NDArray

GROUP = 32
"""Values in a block of each of these formats."""


@dataclass(frozen=True, slots=True)
class Quants:
    """value = scale * quant + minimum, or scale * quant. R rows, N blocks in a row.

    quants [R, 32 N]: uint8, 0 .. 15, where there are minima; else int8. scales, minima [R, N]: fp16.
    """

    quants: NDArray[np.uint8] | NDArray[np.int8]
    scales: NDArray[np.float16]
    minima: NDArray[np.float16] | None = None


def is_kept(kind: Kind) -> bool:
    """Tell whether `take_apart` knows the format."""
    return kind in (Kind.Q4_0, Kind.Q4_1, Kind.Q8_0)


def take_apart(rows: NDArray[np.uint8], kind: Kind) -> Quants:
    """Take blocks apart. rows: the stored bytes of whole blocks, one row of the matrix in each."""
    if kind == Kind.Q8_0:
        blocks = _blocks(rows, 34)
        return Quants(blocks[..., 2:].view(np.int8).reshape(len(rows), -1), _halves(blocks, 0))
    if kind == Kind.Q4_1:
        blocks = _blocks(rows, 20)
        return Quants(_nibbles(blocks[..., 4:]), _halves(blocks, 0), _halves(blocks, 2))
    assert kind == Kind.Q4_0, f"{kind.name} is not kept"
    blocks = _blocks(rows, 18)
    scales = _halves(blocks, 0)  # the value is scale * (quant - 8), and -8 * scale as exact as the scale
    return Quants(_nibbles(blocks[..., 2:]), scales, scales * np.float16(-8))


def _blocks(rows: NDArray[np.uint8], block_bytes: int) -> NDArray[np.uint8]:
    return np.ascontiguousarray(rows).reshape(len(rows), -1, block_bytes)


def _halves(blocks: NDArray[np.uint8], at: int) -> NDArray[np.float16]:
    return np.ascontiguousarray(blocks[..., at : at + 2]).view(np.float16)[..., 0]


def _nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The first half of a block lies in the lower four bits of its bytes, the second in the upper four."""
    return np.concatenate((packed & 15, packed >> 4), axis=-1).reshape(len(packed), -1)
