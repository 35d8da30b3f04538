"""Every transport delivers every message, in order, whatever the sizes and the order of waiting."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.distributed.across_hosts import AcrossHostsTransport
from longspan.distributed.local import LocalTensorParallel, LocalTransport, LocalWorld
from longspan.distributed.plain_mail import PlainMail
from longspan.distributed.shared_memory import Mail, SharedMemoryTensorParallel, SharedMemoryTransport
from longspan.distributed.transport import Transport
from longspan.executor.meeting_place import MeetingPlace
from longspan.native.library import best_library
from longspan.native.mail import NativeMail
from longspan.native.work import CurrentWork
from tests.threads import in_threads

WORLD, CAPACITY = 3, 1000
DEADLOCK_S = 30


def local() -> list[Transport]:
    world = LocalWorld(WORLD, tp_size=1)
    return [LocalTransport(world, rank) for rank in range(WORLD)]


def shared(make_mail: Callable[[CurrentWork], Mail]) -> list[Transport]:
    """Buffers so small that most messages do not fit into them."""
    with closing(MeetingPlace()) as place:
        return [
            SharedMemoryTransport(place.path, rank, WORLD, CAPACITY, make_mail=make_mail) for rank in range(WORLD)
        ]


def native_mail(work: CurrentWork) -> Mail:
    library = best_library()
    if library is None:
        pytest.skip("no kernels here: no compiler, or not x86-64")
    return NativeMail(library, work)


def across_hosts(make_mail: Callable[[CurrentWork], Mail]) -> list[Transport]:
    """The first two are on one machine, the third on another."""
    with closing(MeetingPlace()) as place:
        ranks = [
            AcrossHostsTransport(place.path, rank, WORLD, "127.0.0.1", b"token", CAPACITY, make_mail=make_mail)
            for rank in range(WORLD)
        ]
    for rank in (0, 1):
        ranks[rank].call(ranks[2].address, 2)
        ranks[2].take_callers()
    for transport in ranks:
        transport.close()
    return list(ranks)


MAKERS = {
    "threads": local,
    "shared memory": lambda: shared(native_mail),
    "shared memory, plain": lambda: shared(PlainMail),
    "across hosts": lambda: across_hosts(native_mail),
    "across hosts, plain": lambda: across_hosts(PlainMail),
}


# Each round: the size of the message from each rank to each other one; 0 is none.
ROUNDS = st.lists(
    st.lists(st.sampled_from([0, 1, 7, 250, 400, 3000]), min_size=WORLD * WORLD, max_size=WORLD * WORLD), min_size=1,
    max_size=6,
)  # fmt: skip


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@settings(max_examples=60)
@given(rounds=ROUNDS, wait_late=st.booleans())
def test_every_message_arrives(make: Callable[[], list[Transport]], rounds: list[list[int]], wait_late: bool) -> None:
    transports = make()

    def content(number: int, src: int, dst: int) -> torch.Tensor:
        size = rounds[number][src * WORLD + dst]
        return torch.arange(size, dtype=torch.float32) + 10_000 * (number * 100 + src * 10 + dst)

    def work(rank: int) -> None:
        others = [other for other in range(WORLD) if other != rank]
        under_way = []
        for number in range(len(rounds)):
            sends = [(content(number, rank, dst), dst) for dst in others]
            receives = [(torch.empty(len(content(number, src, rank))), src) for src in others]
            exchange = transports[rank].exchange(
                [(tensor, dst) for tensor, dst in sends if len(tensor)],
                [(tensor, src) for tensor, src in receives if len(tensor)],
            )
            under_way.append((number, exchange, receives))
            if not wait_late:
                exchange.wait()
        for number, exchange, receives in under_way:
            if wait_late:
                exchange.wait()
            for tensor, src in receives:
                assert torch.equal(tensor, content(number, src, rank))

    in_threads(work, range(WORLD), deadlock_s=DEADLOCK_S)


def test_which_ranks_share_memory() -> None:
    everyone = {(rank, other) for rank in range(WORLD) for other in range(WORLD) if rank != other}
    for kind, wanted in (("threads", everyone), ("shared memory", everyone), ("across hosts", {(0, 1), (1, 0)})):
        transports = MAKERS[kind]()
        assert {(rank, other) for rank, other in everyone if transports[rank].shares_memory(other)} == wanted


def test_a_rank_that_comes_to_the_same_host_shares_memory() -> None:
    first, _, third = across_hosts(PlainMail)
    assert isinstance(first, AcrossHostsTransport) and not first.shares_memory(2)
    with closing(MeetingPlace()) as place:
        first.link(place.path, 2)
        new = AcrossHostsTransport(place.path, 2, WORLD, "127.0.0.1", b"token", CAPACITY)
    assert first.shares_memory(2) and new.shares_memory(0) and not third.shares_memory(0)
    new.exchange([(torch.arange(3.0), 0)], []).wait()
    heard = torch.empty(3)
    first.exchange([], [(heard, 2)]).wait()
    assert heard.tolist() == [0.0, 1.0, 2.0]
    new.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["threads", "shared memory"])
def test_tensor_parallel_sums_are_the_same_everywhere(kind: str, dtype: torch.dtype) -> None:
    tp, instances = 2, 2
    ranks = range(tp * instances)
    with closing(MeetingPlace()) as place:
        if kind == "threads":
            world = LocalWorld(tp * instances, tp)
            groups = [LocalTensorParallel(world, rank) for rank in ranks]
        else:
            transports = [SharedMemoryTransport(place.path, rank, tp * instances, CAPACITY) for rank in ranks]
            groups = [SharedMemoryTensorParallel(transport, tp) for transport in transports]
    parts = [torch.randn(5, 700).to(dtype) for _ in ranks]
    sums: list[torch.Tensor] = [torch.empty(0)] * len(parts)
    wholes: list[torch.Tensor] = [torch.empty(0)] * len(parts)
    sizes = [300, 400]

    def work(rank: int) -> None:
        sums[rank] = groups[rank].all_reduce_(parts[rank].clone())
        mine = parts[rank][:, : sizes[rank % tp]].contiguous()
        wholes[rank] = groups[rank].all_gather_vocab(mine, sizes)

    in_threads(work, ranks, deadlock_s=DEADLOCK_S)
    for first in range(0, len(parts), tp):
        expected = parts[first].float() + parts[first + 1].float()
        torch.testing.assert_close(sums[first].float(), expected, atol=4e-2, rtol=1e-2)
        assert torch.equal(sums[first], sums[first + 1])
        assert torch.equal(wholes[first], torch.cat([parts[first][:, :300], parts[first + 1][:, :400]], dim=-1))
        assert torch.equal(wholes[first], wholes[first + 1])


def test_a_stranger_is_no_rank() -> None:
    """Nor is one of another engine; who calls is told, and the rank goes on with those that know the token."""
    with closing(MeetingPlace()) as place:
        ours, stranger, friend = (
            AcrossHostsTransport(place.path, rank, 2, "127.0.0.1", token, CAPACITY)
            for rank, token in ((0, b"token"), (1, b"other"), (1, b"token"))
        )
        with pytest.raises(OSError):
            stranger.call(ours.address, 0)
        ours.take_callers()
        friend.call(ours.address, 0)
        ours.take_callers()
        heard = torch.empty(3)
        exchange = ours.exchange([], [(heard, 1)])
        friend.exchange([(torch.arange(3.0), 0)], []).wait()
        exchange.wait()
        assert heard.tolist() == [0.0, 1.0, 2.0]
        for transport in (ours, stranger, friend):
            transport.close()
