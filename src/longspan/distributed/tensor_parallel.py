"""What a tensor-parallel model asks of the devices that share one instance.

Model files never see a communicator: they are handed something with this shape, and a model on one device
gets `SingleDevice`, for which every exchange is nothing at all.

Shape suffixes: E rows to emit, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class TensorParallelGroup(Protocol):
    """The devices of one instance. All of them make the same calls, in the same order, with equal shapes."""

    @property
    def size(self) -> int: ...

    def all_reduce_(self, tensor: Tensor) -> Tensor:
        """Replace `tensor` by its sum over the devices, in place, and return it."""
        ...

    def all_gather_vocab(self, local_logits_EV: Tensor, sizes: Sequence[int]) -> Tensor:
        """Joins the devices' columns in rank order; rank i brings `sizes[i]` of them."""
        ...


class SingleDevice:
    """The instance is one device: nothing to exchange."""

    size = 1

    def all_reduce_(self, tensor: Tensor) -> Tensor:
        return tensor

    def all_gather_vocab(self, local_logits_EV: Tensor, sizes: Sequence[int]) -> Tensor:
        return local_logits_EV
