"""Processes meet over TCP on the loopback interface, and every pair of them is connected from the start."""

from __future__ import annotations

import multiprocessing
import socket
from datetime import timedelta
from multiprocessing.connection import Connection

import pytest
import torch

from tests.ports import closed_port

WORLD = 3


def member(rank: int, port: int, listener: socket.socket | None, pipe: Connection) -> None:
    """One process: joins, exchanges, and says what it heard."""
    from longspan.distributed import process_group
    from longspan.distributed.process_group import ProcessTransport, init_world

    device = torch.device("cpu")
    init_world("gloo", rank, WORLD, port, listener, device)
    transport = ProcessTransport(device)
    transport.connect_all()
    others = [other for other in range(WORLD) if other != rank]
    heard = [torch.empty(2) for _ in others]
    sends = [(torch.tensor([float(rank), float(other)]), other) for other in others]
    transport.exchange(sends, list(zip(heard, others, strict=True))).wait()
    tp = process_group.ProcessTensorParallel(WORLD, device)
    total = tp.all_reduce_(torch.tensor([rank + 1.0]))
    pipe.send((port_of_store(), [x.tolist() for x in heard], total.item()))
    pipe.recv()  # the store is needed until all have said so
    torch.distributed.destroy_process_group()  # its threads end, before those of a process that exits are torn down


def port_of_store() -> int:
    from torch.distributed import distributed_c10d

    store = distributed_c10d._get_default_store()
    while hasattr(store, "underlying_store"):
        store = store.underlying_store
    port: int = store.port
    return port


def test_a_world_meets_where_its_starter_listens() -> None:
    context = multiprocessing.get_context("spawn")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        members = []
        for rank in range(WORLD):
            ours, theirs = context.Pipe()
            process = context.Process(target=member, args=(rank, port, listener if rank == 0 else None, theirs))
            process.start()
            theirs.close()
            members.append((process, ours))
    for rank, (_, pipe) in enumerate(members):
        others = [float(other) for other in range(WORLD) if other != rank]
        assert pipe.recv() == (port, [[other, float(rank)] for other in others], 6.0)
    for process, pipe in members:
        pipe.send("all have")
        process.join()
        assert process.exitcode == 0


def test_who_finds_nobody_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not after hours."""
    from longspan.distributed import process_group

    monkeypatch.setattr(process_group, "_MEETING", timedelta(seconds=1))
    with closed_port() as port, pytest.raises(torch.distributed.DistError):
        process_group.init_world("gloo", 1, 2, port, None, torch.device("cpu"))
