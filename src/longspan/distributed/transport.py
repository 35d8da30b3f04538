"""Point-to-point exchange between devices: the only way that instances talk to each other.

One world spans every device of every instance. A parallel group is just a list of ranks in it, so that forming,
growing or dissolving a group builds no communicator and moves no weights (LoongServe section 4.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch


class Exchange(Protocol):
    """A set of sends and receives on their way. Buffers may be touched again only after `wait`."""

    def wait(self) -> None: ...


class Transport(Protocol):
    """Sends between ranks.

    For each ordered pair of ranks, the n-th send meets the n-th receive; both ends know every shape beforehand,
    because both derive them from the same batch. Nothing blocks before `Exchange.wait`.
    """

    rank: int

    def exchange(
        self, sends: Sequence[tuple[torch.Tensor, int]], receives: Sequence[tuple[torch.Tensor, int]]
    ) -> Exchange:
        """Start to send each (contiguous tensor, to rank), and to fill each (contiguous tensor, from rank)."""
        ...


class NothingToWaitFor:
    """The exchange of a batch that needs none."""

    def wait(self) -> None:
        return


class SoleDevice:
    """The transport of a world of one rank."""

    rank = 0

    def exchange(
        self, sends: Sequence[tuple[torch.Tensor, int]], receives: Sequence[tuple[torch.Tensor, int]]
    ) -> Exchange:
        assert not sends and not receives, "a world of one rank has nobody to talk to"
        return NothingToWaitFor()
