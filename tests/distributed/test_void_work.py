"""Work that becomes void is left wherever its ranks are in it, and what follows is as if it had never been."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.distributed.across_hosts import AcrossHostsTransport
from longspan.distributed.plain_mail import PlainMail
from longspan.distributed.shared_memory import Mail, SharedMemoryTransport
from longspan.executor.meeting_place import MeetingPlace
from longspan.native.work import CurrentWork, WorkVoidError
from tests.distributed.test_transports import across_hosts, native_mail
from tests.threads import in_threads

WORLD, CAPACITY, DEADLOCK_S = 3, 1000, 30
MAILS = pytest.mark.parametrize("make_mail", [native_mail, PlainMail], ids=["native", "plain"])
MakeMail = Callable[[CurrentWork], Mail]


@dataclass(frozen=True)
class Work:
    """letters: the sizes of those from each rank to each other one, in floats, by rounds, each waited for.

    absent: the rank that takes no part, so that the others cannot come to its end; None: the work is as any other.
    """

    letters: list[list[int]]
    absent: int | None


SIZES = st.lists(st.sampled_from([0, 1, 7, 240, 250, 900]), min_size=WORLD * WORLD, max_size=WORLD * WORLD)
WORKS = st.lists(
    st.builds(Work, st.lists(SIZES, min_size=1, max_size=3), st.sampled_from([None, None, *range(WORLD)])),
    min_size=2, max_size=6,
)  # fmt: skip


@contextmanager
def ranks(make_mail: MakeMail, hosts: int = 1) -> Iterator[list[SharedMemoryTransport]]:
    """hosts: 2 has the last rank on a machine of its own."""
    if hosts == 2:
        yield [rank for rank in across_hosts(make_mail) if isinstance(rank, SharedMemoryTransport)]
        return
    with closing(MeetingPlace()) as place:
        yield [SharedMemoryTransport(place.path, rank, WORLD, CAPACITY, make_mail=make_mail) for rank in range(WORLD)]


def content(number: int, turn: int, src: int, dst: int, size: int) -> torch.Tensor:
    return torch.arange(size, dtype=torch.float32) + 10_000 * (number * 1000 + turn * 100 + src * 10 + dst)


def take_part(transport: SharedMemoryTransport, number: int, work: Work) -> None:
    """All rounds of the work. What comes must be what was sent, unless it is void: then its sender may have left it."""
    rank = transport.rank
    others = [other for other in range(WORLD) if other != rank]
    for turn, sizes in enumerate(work.letters):
        sends = [(content(number, turn, rank, dst, sizes[rank * WORLD + dst]), dst) for dst in others]
        receives = [(torch.empty(sizes[src * WORLD + rank]), src) for src in others]
        transport.exchange(
            [(tensor, dst) for tensor, dst in sends if len(tensor)],
            [(tensor, src) for tensor, src in receives if len(tensor)],
        ).wait()
        for tensor, src in receives:
            assert work.absent is not None or torch.equal(tensor, content(number, turn, src, rank, len(tensor)))


def take_part_or_leave(transport: SharedMemoryTransport, number: int, work: Work) -> None:
    try:
        take_part(transport, number, work)
    except WorkVoidError:
        assert work.absent is not None
        transport.drop()
    transport.work.end()


@MAILS
@pytest.mark.parametrize("hosts", [1, 2])
@settings(max_examples=60)
@given(works=WORKS)
def test_what_follows_void_work_arrives(make_mail: MakeMail, hosts: int, works: list[Work]) -> None:
    """Each rank is told at a time of its own: the absent one before it begins, the others while they are in it, or when
    they have ended it, if it needs nothing of the absent one."""
    with ranks(make_mail, hosts) as transports:
        begun = {(number, rank): threading.Event() for number in range(len(works)) for rank in range(WORLD)}
        for number, work in enumerate(works):
            if work.absent is not None:
                transports[work.absent].work.cancel([number])

        def tell(rank: int) -> None:
            for number, work in enumerate(works):
                begun[number, rank].wait(DEADLOCK_S)
                if work.absent is not None:
                    transports[rank].work.cancel([number])

        def serve(rank: int) -> None:
            for number, work in enumerate(works):
                begins = transports[rank].work.begin(number)
                begun[number, rank].set()
                if begins:
                    take_part_or_leave(transports[rank], number, work)

        def run(thread: int) -> None:
            serve(thread) if thread < WORLD else tell(thread - WORLD)

        in_threads(run, range(2 * WORLD), deadlock_s=DEADLOCK_S)


@MAILS
@settings(max_examples=30)
@given(before=SIZES, after=SIZES)
def test_a_rank_in_place_of_another(make_mail: MakeMail, before: list[int], after: list[int]) -> None:
    """The old one had sent some of a letter, and read none: neither is seen by the new one, nor by the others."""
    with ranks(make_mail) as transports, closing(MeetingPlace()) as place:
        lost = WORLD - 1
        unread = torch.ones(CAPACITY)
        transports[lost].exchange([(unread, rank) for rank in range(lost)], [])
        works = [Work([before], lost), Work([after], None)]
        for rank in range(lost):
            transports[rank].work.begin(0)
            others = [other for other in range(WORLD) if other != rank]
            transports[rank].exchange([(unread, other) for other in others], [(torch.empty(10), lost)])
            transports[rank].work.cancel([0])
            transports[rank].drop()
        new = SharedMemoryTransport(place.path, lost, WORLD, CAPACITY, make_mail=make_mail)
        for rank in range(lost):
            transports[rank].link(place.path, lost)
        world = [*transports[:lost], new]

        def serve(rank: int) -> None:
            assert world[rank].work.begin(1)
            take_part(world[rank], 1, works[1])

        in_threads(serve, range(WORLD), deadlock_s=DEADLOCK_S)


@MAILS
@settings(max_examples=10)
@given(after=SIZES)
def test_a_rank_in_place_of_another_on_another_host(make_mail: MakeMail, after: list[int]) -> None:
    """As above; its connections are cut without a word."""
    lost = WORLD - 1
    transports = across_hosts(make_mail)
    unread = torch.ones(100 * CAPACITY)
    transports[lost].exchange([(unread, rank) for rank in range(lost)], [])
    for rank in range(lost):
        survivor = transports[rank]
        assert isinstance(survivor, AcrossHostsTransport)
        survivor.work.begin(0)
        others = [other for other in range(WORLD) if other != rank]
        survivor.exchange([(unread, other) for other in others], [(torch.empty(10), lost)])
        survivor.work.cancel([0])
        survivor.drop()
    with closing(MeetingPlace()) as place:
        new = AcrossHostsTransport(place.path, lost, WORLD, "127.0.0.1", b"token", CAPACITY, make_mail=make_mail)
    world: list[SharedMemoryTransport] = []
    for survivor in transports[:lost]:
        assert isinstance(survivor, AcrossHostsTransport)
        survivor.call(new.address, lost)
        world.append(survivor)
    new.take_callers()
    new.close()
    world.append(new)

    def serve(rank: int) -> None:
        assert world[rank].work.begin(1)
        take_part(world[rank], 1, Work([after], None))

    in_threads(serve, range(WORLD), deadlock_s=DEADLOCK_S)


def test_work_is_void_before_within_and_behind() -> None:
    work = CurrentWork()
    work.cancel([2])
    assert work.begin(1) and not work.is_void
    work.check()
    assert not work.begin(2) and work.number == 1, "it does not begin"
    work.cancel([1])
    with pytest.raises(WorkVoidError):
        work.check()
    work.end()
    work.check()
    assert work.begin(3)
    work.cancel([1, 2])
    work.check()
    work.forget([1, 2])
    assert work.begin(2), "numbers of old are not kept for ever"
