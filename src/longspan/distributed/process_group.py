"""Exchange between processes through torch.distributed: gloo on CPUs, NCCL on GPUs.

Workers meet at a store that the first one serves on the loopback interface for as long as it lives: NCCL's threads go
on reading it. The system chooses its port, and the executor binds it: no other program can take it meanwhile.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from longspan.distributed.transport import Exchange, NothingToWaitFor

_LOOPBACK = "127.0.0.1"
_MEETING = timedelta(minutes=2)  # all are started at once, and have only to import torch
# A peer may be busy with a long batch of another group. Dead and hanging peers are the executor's to find.
_TIMEOUT = timedelta(minutes=30)


def init_world(
    backend: str, rank: int, world_size: int, port: int, listener: socket.socket | None, device: torch.device
) -> None:
    """Join the world. backend: gloo or nccl. port: of the store. listener: bound to it; the first rank's only.

    Raises torch.distributed.DistError where other ranks do not come.
    """
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine: nothing leaves the loopback interface
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    store = TCPStore(
        _LOOPBACK, port, world_size, is_master=rank == 0, timeout=_MEETING,
        master_listen_fd=listener.detach() if listener is not None else None,
    )  # fmt: skip
    dist.init_process_group(
        backend,
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=_TIMEOUT,
        device_id=device if device.type == "cuda" else None,
    )


class ProcessTransport:
    """`Transport` over the world's process group."""

    def __init__(self, device: torch.device) -> None:
        self.rank = dist.get_rank()
        self.device = device

    def connect_all(self) -> None:
        """Exchange a word with every other rank, all of which do so too.

        The first message of a pair builds its connection, and both ends have to take part in that: in the middle of
        batches one would wait for a rank that is busy elsewhere.
        """
        others = [rank for rank in range(dist.get_world_size()) if rank != self.rank]
        word = torch.full((1,), self.rank, device=self.device)
        heard = [torch.full((1,), -1, device=self.device) for _ in others]
        sends = [(word, rank) for rank in others]
        self.exchange(sends, list(zip(heard, others, strict=True))).wait()
        assert [int(other) for other in heard] == others, "ranks are mixed up"

    def exchange(
        self, sends: Sequence[tuple[torch.Tensor, int]], receives: Sequence[tuple[torch.Tensor, int]]
    ) -> Exchange:
        operations = [dist.P2POp(dist.isend, tensor, dst) for tensor, dst in sends]
        operations += [dist.P2POp(dist.irecv, tensor, src) for tensor, src in receives]
        if not operations:
            return NothingToWaitFor()
        # The buffers are kept alive until the exchange is over.
        return _ProcessExchange(dist.batch_isend_irecv(operations), operations)

    def shares_memory(self, other: int) -> bool:
        return False


class _ProcessExchange:
    def __init__(self, works: list[Any], operations: list[dist.P2POp]) -> None:
        self.works = works
        self.operations = operations

    def wait(self) -> None:
        for work in self.works:
            work.wait()


class ProcessTensorParallel:
    """`TensorParallelGroup` over a sub-group of processes: the devices of one instance."""

    def __init__(self, tp_size: int, device: torch.device) -> None:
        self.size = tp_size
        instance = dist.get_rank() // tp_size
        # Every rank takes part in building every group, in the same order.
        groups = [
            dist.new_group(list(range(first, first + tp_size)), timeout=_TIMEOUT)
            for first in range(0, dist.get_world_size(), tp_size)
        ]
        self.group = groups[instance]
        self.all_reduce_(torch.zeros(1, device=device))  # builds the communicator

    def all_reduce_(self, tensor: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(tensor, group=self.group)
        return tensor

    def all_gather_vocab(self, local_logits_EV: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        # Widths differ between ranks, and gloo gathers equal shapes only: pad to the widest, then cut.
        rows, widest = local_logits_EV.shape[0], max(sizes)
        padded = local_logits_EV.new_zeros(rows, widest)
        padded[:, : local_logits_EV.shape[1]] = local_logits_EV
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=self.group)
        return torch.cat([part[:, :width] for part, width in zip(parts, sizes, strict=True)], dim=-1)
