"""Exchange between processes through torch.distributed: gloo on CPUs, NCCL on GPUs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from longspan.distributed.transport import Exchange, NothingToWaitFor

# Long: a peer may be busy with a long batch of another group. Dead and hanging peers are the executor's to find.
_TIMEOUT = timedelta(hours=12)


def init_world(backend: str, rank: int, world_size: int, rendezvous: str, device: torch.device) -> None:
    """Join the world. backend: gloo or nccl. rendezvous: path of a file that is not there yet, the same for all."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine: nothing leaves the loopback interface
    dist.init_process_group(
        backend,
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=world_size,
        timeout=_TIMEOUT,
        device_id=device if device.type == "cuda" else None,
    )
    # NCCL builds its communicator in the first operation, and every rank must take part in that one.
    dist.barrier()


class ProcessTransport:
    """`Transport` over the world's process group."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()

    def exchange(
        self, sends: Sequence[tuple[torch.Tensor, int]], receives: Sequence[tuple[torch.Tensor, int]]
    ) -> Exchange:
        operations = [dist.P2POp(dist.isend, tensor, dst) for tensor, dst in sends]
        operations += [dist.P2POp(dist.irecv, tensor, src) for tensor, src in receives]
        if not operations:
            return NothingToWaitFor()
        # The buffers are kept alive until the exchange is over.
        return _ProcessExchange(dist.batch_isend_irecv(operations), operations)


class _ProcessExchange:
    def __init__(self, works: list[Any], operations: list[dist.P2POp]) -> None:
        self.works = works
        self.operations = operations

    def wait(self) -> None:
        for work in self.works:
            work.wait()


class ProcessTensorParallel:
    """`TensorParallelGroup` over a sub-group of processes: the devices of one instance."""

    def __init__(self, tp_size: int) -> None:
        self.size = tp_size
        instance = dist.get_rank() // tp_size
        # Every rank takes part in building every group, in the same order.
        groups = [
            dist.new_group(list(range(first, first + tp_size)), timeout=_TIMEOUT)
            for first in range(0, dist.get_world_size(), tp_size)
        ]
        self.group = groups[instance]

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
