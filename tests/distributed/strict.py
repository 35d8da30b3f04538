"""Point-to-point exchange as strict as NCCL's on a stream, between threads.

Each rank has one queue. All sends and receives of an `exchange` begin together, and only when everything before them in
that rank's queue is over; they are over together, when the other end of each has begun as well. So whoever queues in an
order that another rank's contradicts is stuck, whether or not the messages of any one pair are in order.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from longspan.distributed.transport import Exchange, NothingToWaitFor


@dataclass(eq=False)
class _Group:
    """What is still missing: (tensor, other rank). done: all of it is over."""

    sends: list[tuple[torch.Tensor, int]]
    receives: list[tuple[torch.Tensor, int]]
    done: bool = False


@dataclass
class StrictWorld:
    """What the ranks share."""

    size: int
    queues: list[deque[_Group]] = field(init=False)
    changed: threading.Condition = field(default_factory=threading.Condition)
    given_up: bool = False

    def __post_init__(self) -> None:
        self.queues = [deque() for _ in range(self.size)]

    def give_up(self) -> None:
        with self.changed:
            self.given_up = True
            self.changed.notify_all()

    def settle(self) -> None:
        """Let everything happen that can; called with `changed` held."""
        moved = True
        while moved:
            moved = False
            for rank, queue in enumerate(self.queues):
                while queue and self._deliver(rank, queue[0]):
                    queue.popleft().done = moved = True
        self.changed.notify_all()

    def _deliver(self, rank: int, group: _Group) -> bool:
        """Copy to those that receive right now; whether nothing of the group is missing any more."""
        left = []
        for tensor, dst in group.sends:
            theirs = self.queues[dst][0].receives if self.queues[dst] else []
            place = next((i for i, (_, src) in enumerate(theirs) if src == rank), None)
            if place is None:
                left.append((tensor, dst))
            else:
                theirs.pop(place)[0].copy_(tensor)
        group.sends = left
        return not group.sends and not group.receives


class StrictTransport:
    """`Transport` in a `StrictWorld`."""

    def __init__(self, world: StrictWorld, rank: int) -> None:
        self.world = world
        self.rank = rank

    def exchange(
        self, sends: Sequence[tuple[torch.Tensor, int]], receives: Sequence[tuple[torch.Tensor, int]]
    ) -> Exchange:
        if not sends and not receives:
            return NothingToWaitFor()
        group = _Group(list(sends), list(receives))
        with self.world.changed:
            self.world.queues[self.rank].append(group)
            self.world.settle()
        return StrictExchange(self.world, group)

    def shares_memory(self, other: int) -> bool:
        return False


@dataclass
class StrictExchange:
    world: StrictWorld
    group: _Group

    def wait(self) -> None:
        with self.world.changed:
            self.world.changed.wait_for(lambda: self.group.done or self.world.given_up)
        assert self.group.done, "another rank failed"
