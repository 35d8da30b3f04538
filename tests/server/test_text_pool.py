"""Work on texts: bounded, off the event loop, and not waited for when its client leaves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

import pytest

from longspan.entrypoints.openai.bounds import Bounds
from longspan.entrypoints.openai.text_pool import LARGE, MAX_WAITING, TextPool
from longspan.entrypoints.openai.texts import Texts
from longspan.errors import QueueFullError, RequestError
from tests.server.fake_engine import FakeEngine, FakeTokenizer


class Gate:
    """Work that tells when it begins, and goes on when it is let."""

    def __init__(self) -> None:
        self.began = threading.Semaphore(0)
        self.opened = threading.Event()
        self.stopped = threading.Event()

    def work(self, check: Callable[[], None]) -> str:
        self.began.release()
        assert self.opened.wait(30)
        try:
            check()
        except BaseException:
            self.stopped.set()
            raise
        return "done"

    async def has_begun(self) -> None:
        await asyncio.to_thread(self.began.acquire)


@pytest.fixture
async def pool() -> AsyncIterator[TextPool]:
    pool = TextPool(max_waiting_chars=1000, num_threads=2)
    yield pool
    pool.close()


async def start(pool: TextPool, work: Callable[[Callable[[], None]], object], size: int = 1) -> asyncio.Task[object]:
    task = asyncio.ensure_future(pool.run(work, size))
    await asyncio.sleep(0)
    return task


async def test_results_and_errors_come_back(pool: TextPool) -> None:
    assert await pool.run(lambda _: threading.current_thread() is threading.main_thread(), 1) is False
    with pytest.raises(ZeroDivisionError):
        await pool.run(lambda _: 1 // 0, 1)

    def panic(_: object) -> None:
        raise SystemExit("the tokenizer panics")

    with pytest.raises(RuntimeError, match="the tokenizer panics"):
        await pool.run(panic, 1)
    assert await pool.run(lambda _: "still there", 1) == "still there"


async def test_a_client_that_leaves_is_not_waited_for_but_its_work_keeps_its_thread(pool: TextPool) -> None:
    gate, other = Gate(), Gate()
    leaving, staying = await start(pool, gate.work), await start(pool, other.work)
    await gate.has_begun()
    await other.has_begun()
    leaving.cancel()
    await asyncio.wait({leaving})
    assert leaving.cancelled()
    ran: list[int] = []
    waiting = await start(pool, lambda _: ran.append(1))
    assert not ran  # both threads are taken, also by what nobody wants
    gate.opened.set()
    await waiting
    assert ran == [1]
    assert await asyncio.to_thread(gate.stopped.wait, 30)  # between its steps it was told to stop
    other.opened.set()
    assert await staying == "done"


async def test_work_whose_client_left_before_it_began_never_begins(pool: TextPool) -> None:
    gate = Gate()
    running = [await start(pool, gate.work) for _ in range(2)]
    await asyncio.gather(gate.has_begun(), gate.has_begun())
    ran: list[int] = []
    queued = await start(pool, lambda _: ran.append(1), 900)
    with pytest.raises(QueueFullError):
        await pool.run(lambda _: None, 200)
    queued.cancel()
    await asyncio.wait({queued})
    last = await start(pool, lambda _: ran.append(2), 200)  # there is room again
    gate.opened.set()
    await asyncio.gather(last, *running)
    assert ran == [2]


async def test_what_waits_is_bounded_by_characters_and_by_number(pool: TextPool) -> None:
    gate = Gate()
    running = [await start(pool, gate.work) for _ in range(2)]
    await asyncio.gather(gate.has_begun(), gate.has_begun())
    alone = await start(pool, lambda _: 1, 5000)  # larger than all that may wait; but nothing else waits
    with pytest.raises(QueueFullError) as full:
        await pool.run(lambda _: 1, 1)
    assert full.value.retry_after_s > 0
    alone.cancel()
    await asyncio.wait({alone})
    many = [await start(pool, lambda _: 1, 0) for _ in range(MAX_WAITING)]
    with pytest.raises(QueueFullError):
        await pool.run(lambda _: 1, 0)
    gate.opened.set()
    await asyncio.gather(*many, *running)


class CountingTokenizer(FakeTokenizer):
    """Drops text without end, so that only the body's size bounds a prompt; knows what it was given."""

    may_shrink = True

    def __init__(self, gate: threading.Event | None = None) -> None:
        self.seen: list[int] = []
        self.began = threading.Semaphore(0)
        self.gate = gate

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        self.seen.append(len(text))
        self.began.release()
        if self.gate is not None:
            assert self.gate.wait(30)
        return super().encode(text.replace(" ", ""))


def texts_of(tokenizer: CountingTokenizer, pool: TextPool) -> Texts:
    engine = FakeEngine()
    engine.tokenizer = tokenizer
    return Texts(tokenizer, Bounds.of(engine, 2**26), pool)


async def test_a_text_that_cannot_fit_is_not_tokenised_to_its_end(pool: TextPool) -> None:
    tokenizer = CountingTokenizer()
    with pytest.raises(RequestError) as refused:
        await texts_of(tokenizer, pool).encode(["x" * 5_000_000], True)
    assert refused.value.code == "context_length_exceeded" and refused.value.param == "prompt"
    assert sum(tokenizer.seen) < 100_000  # characters, of five million
    blanks = " " * 1_000_000 + "x"
    ((ids),) = await texts_of(tokenizer, pool).encode([blanks], True)
    assert ids.tolist() == [ord("x")]  # one that fits is not refused


async def test_a_text_that_nobody_wants_is_not_tokenised_to_its_end(pool: TextPool) -> None:
    gate = threading.Event()
    tokenizer = CountingTokenizer(gate)
    work = asyncio.ensure_future(texts_of(tokenizer, pool).encode([" " * 5_000_000], True))
    await asyncio.to_thread(tokenizer.began.acquire)
    work.cancel()
    await asyncio.wait({work})
    gate.set()
    await pool.run(lambda _: None, LARGE + 1)  # its thread is free again
    assert len(tokenizer.seen) == 1


async def test_short_texts_overtake_long_ones_and_one_thread_takes_no_long_ones() -> None:
    pool = TextPool(max_waiting_chars=100 * LARGE, num_threads=2)
    gate, order = Gate(), list[str]()
    try:
        long = await start(pool, gate.work, LARGE + 1)
        await gate.has_begun()
        later = await start(pool, lambda _: order.append("long"), LARGE + 1)
        await pool.run(lambda _: order.append("short"), 10)  # the other thread left the long one where it was
        assert order == ["short"]
        gate.opened.set()
        await asyncio.gather(long, later)
        assert order == ["short", "long"]
    finally:
        pool.close()
