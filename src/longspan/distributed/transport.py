"""Point-to-point exchange between devices: the only way that instances talk to each other.

One world spans every device of every instance. A parallel group is just a list of ranks in it, so that forming,
growing or dissolving a group builds no communicator and moves no weights (LoongServe section 4.1).

One scheduler gives one total order: it numbers batches and migrations, and every rank takes its own in the order of
those numbers. That keeps a transport free of deadlock whose exchanges begin only behind the one before, as NCCL's do on
a stream: of all exchanges that are not over, the first in that order has all its ranks' attention. An order that any
two ranks agree on is not enough: of three batches over (A, B), (B, C) and (C, A) each rank could begin another one.
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

    def shares_memory(self, other: int) -> bool:
        """Tell whether what goes to another rank, and comes from it, is just copied in memory. Both ends agree."""
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

    def shares_memory(self, other: int) -> bool:
        return False
