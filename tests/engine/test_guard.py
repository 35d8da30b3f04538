"""Whatever is raised while the engine decides and does ends as little as it can, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from longspan import SamplingParams
from longspan.config import EngineConfig
from longspan.core.news import News
from longspan.core.policies.elastic_fcfs import ElasticFcfs
from longspan.core.state import SchedulerState
from longspan.engine.assembly import start_engine
from longspan.engine.async_llm import AsyncLLM
from longspan.errors import EngineDeadError, ReplayError, RequestError, RequestFailedError
from longspan.log_fields import FIELDS
from longspan.metrics.event_log import replay
from longspan.outputs import RequestOutput
from longspan.service_level import ServiceLevel
from longspan.worker.messages import BatchDone, Command, Run
from tests.models.tiny import write_tiny_model

TEXT_ID = "cmpl-mine-0123abcd-0"
"""As the server makes them: of the X-Request-Id `mine`."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"), max_position_embeddings=512)


def config(folder: Path, **settings) -> EngineConfig:
    chosen = {"instances": 2, "kv_tokens": 120, "dtype": "float32", "threads_per_device": 1, **settings}
    return EngineConfig(model=str(folder), executor="inproc", **chosen)


def greedy(max_tokens: int, **more) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, **more)


async def tokens(engine: AsyncLLM, request_id: str, params: SamplingParams, prompt: int = 5) -> list[int]:
    return [token async for out in engine.generate([prompt] * 9, params, request_id) for token in out.token_ids]


class Breaks(ElasticFcfs):
    """Raises at the n-th event."""

    def __init__(self, at: int, error: BaseException) -> None:
        super().__init__()
        self.left = at
        self.error = error

    def schedule(self, state: SchedulerState, news: News, now: float) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.error
        super().schedule(state, news, now)


class Rests(ElasticFcfs):
    """Starts nothing."""

    def schedule(self, state: SchedulerState, news: News, now: float) -> None:
        return


@pytest.mark.parametrize("error", [ZeroDivisionError("in a prediction"), AssertionError("a rule"), KeyError("r1")])
@pytest.mark.parametrize("at", [1, 2, 5])
async def test_what_a_policy_raises_ends_the_engine_loudly(
    tiny: Path, tmp_path: Path, at: int, error: Exception
) -> None:
    """At an arrival, or while a reply is taken in: who is there is told, who comes is refused, the log has it."""
    engine = await start_engine(config(tiny, event_log=tmp_path / "log.jsonl"), Breaks(at, error))
    got = await asyncio.gather(
        *(tokens(engine, f"r{number}", greedy(40)) for number in range(3)), return_exceptions=True
    )
    assert all(isinstance(outcome, EngineDeadError) for outcome in got)
    assert type(error).__name__ in str(got[0])
    assert await engine.dead() == engine.error
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.kv_tokens_used) == (0, 0, 0)
    with pytest.raises(EngineDeadError, match=type(error).__name__):
        await tokens(engine, "late", greedy(1))
    await engine.idle()
    await engine.drain(timeout_s=60)
    await engine.close()
    (log,) = tmp_path.iterdir()
    with pytest.raises((ReplayError, type(error)), match=str(error)):
        replay(log, Breaks(at, error))


@pytest.mark.parametrize(
    ("at", "error"),
    [(1, asyncio.CancelledError()), (5, asyncio.CancelledError()), (1, GeneratorExit()), (5, SystemExit(0))],
)
async def test_what_asyncio_or_the_interpreter_would_swallow_ends_the_engine_too(
    tiny: Path, at: int, error: BaseException
) -> None:
    engine = await start_engine(config(tiny), Breaks(at, error))
    got = await asyncio.gather(
        *(tokens(engine, f"r{number}", greedy(40)) for number in range(3)), return_exceptions=True
    )
    assert all(isinstance(outcome, EngineDeadError) for outcome in got)
    assert type(error).__name__ in await engine.dead()
    await engine.close()


@pytest.mark.parametrize("reply", [BatchDone(999, 0, {}, 0.0, 0.0), "no reply at all"])
async def test_a_reply_that_makes_no_sense_ends_the_engine_loudly(tiny: Path, reply: object) -> None:
    engine = await start_engine(config(tiny))
    stream = engine.generate([5] * 9, greedy(100), "r")
    await anext(stream)
    engine.core.on_reply(reply)
    with pytest.raises(EngineDeadError, match="was taken in"):
        async for _ in stream:
            pass
    await engine.close()


UNSENDABLE = {
    "a lone surrogate in a stop string": ("r", {"stop": ("\ud800",)}),
    "a stop token beyond 64 bits": ("r", {"stop_token_ids": (2**70,)}),
    "a priority beyond 64 bits": ("r", {"service": ServiceLevel(priority=-(2**70))}),
    "a number of candidates beyond 64 bits": ("r", {"top_k": 2**64}),
    "a lone surrogate in the id": ("r\udfff", {}),
}


@pytest.mark.parametrize(("request_id", "params"), UNSENDABLE.values(), ids=UNSENDABLE)
async def test_what_cannot_be_sent_to_a_worker_is_refused_and_leaves_nothing(
    shared: AsyncLLM, request_id: str, params: dict[str, object]
) -> None:
    with pytest.raises(RequestError):
        await tokens(shared, request_id, greedy(3, **params))
    await shared.idle()
    assert shared.core.scheduler.idle() and not shared.core.requests
    assert len(await tokens(shared, "next", greedy(3))) == 3


@pytest.fixture
async def shared(tiny: Path):
    engine = await start_engine(config(tiny))
    yield engine
    assert engine.error is None
    await engine.close()


async def test_a_failure_in_one_answer_leaves_the_others_alone(
    shared: AsyncLLM, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The text of a token, its log probabilities, a reader that cannot take it: each is one request's own."""
    alone = [await tokens(shared, f"alone-{prompt}", greedy(30), prompt) for prompt in (5, 6)]
    await shared.idle()

    def fail(*_: object, **__: object) -> None:
        raise OverflowError("in the text")

    async def failing_text() -> None:
        stream = shared.generate([7] * 9, greedy(30), TEXT_ID)
        await anext(stream)
        monkeypatch.setattr(shared.core.requests[TEXT_ID].processor, "push", fail)
        with pytest.raises(RequestFailedError, match="OverflowError"):
            async for _ in stream:
                pass

    async def failing_reader() -> None:
        stream = shared.generate([8] * 9, greedy(30), "reader")
        await anext(stream)
        monkeypatch.setattr(shared.core.requests["reader"], "sink", fail)
        while "reader" in shared.core.requests:
            await asyncio.sleep(0)

    good = [tokens(shared, f"beside-{prompt}", greedy(30), prompt) for prompt in (5, 6)]
    beside = await asyncio.gather(*good, failing_text(), failing_reader())
    assert beside[:2] == alone
    told = [getattr(record, FIELDS) for record in caplog.records if record.levelname == "ERROR"]
    assert {about["request_id"]: about["engine_id"] for about in told} == {"mine": TEXT_ID, "reader": "reader"}
    await shared.idle()
    assert shared.stats().kv_tokens_used == 0
    shared.core.scheduler.check_invariants()


async def test_an_id_that_is_used_again(shared: AsyncLLM) -> None:
    """Of a request that runs, or drains: refused. Of one that has ended: served, whoever still reads the first."""
    first = shared.generate([5] * 9, greedy(2), "id")
    await anext(first)
    with pytest.raises(RequestError, match="running already"):
        await anext(shared.generate([5], greedy(1), "id"))
    await shared.idle()  # the first has ended, though its reader has not seen it
    second = shared.generate([5] * 9, greedy(50), "id")
    await anext(second)
    await first.aclose()
    assert [out.finish_reason async for out in second][-1] == "length"
    third = shared.generate([5] * 9, greedy(100), "id")
    await anext(third)
    await third.aclose()
    if shared.core.scheduler.knows("id"):
        with pytest.raises(RequestError, match="running already"):
            await tokens(shared, "id", greedy(2))
    await shared.idle()
    assert len(await tokens(shared, "id", greedy(2))) == 2


class Later:
    """A clock that can be put forward."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s


async def test_a_batch_that_does_not_end_is_told(shared: AsyncLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    shared.core.clock = clock = Later()
    kept: list[tuple[int, Command]] = []
    submit = shared.executor.submit

    def lose(instance: int, command: Command) -> None:
        if isinstance(command, Run):
            kept.append((instance, command))
        else:
            submit(instance, command)

    monkeypatch.setattr(shared.executor, "submit", lose)
    answer: asyncio.Task[list[int]] = asyncio.create_task(tokens(shared, "r", greedy(3)))
    while not kept:
        await asyncio.sleep(0)
    assert shared.stalled is None
    clock.ahead_s = 1000.0
    assert shared.stalled is not None and "batch 0 on instances 0" in shared.stalled
    monkeypatch.setattr(shared.executor, "submit", submit)
    for instance, command in kept:
        submit(instance, command)
    assert len(await answer) == 3  # it goes on, and nothing is said any more
    assert shared.stalled is None


async def test_a_policy_that_leaves_requests_waiting_is_told(tiny: Path) -> None:
    engine = await start_engine(config(tiny), Rests())
    engine.core.clock = clock = Later()
    answer = asyncio.create_task(tokens(engine, "r", greedy(3)))
    while not engine.core.requests:
        await asyncio.sleep(0)
    assert engine.stalled is None
    clock.ahead_s = 1000.0
    assert engine.stalled is not None and "has started nothing" in engine.stalled
    answer.cancel()
    await asyncio.wait([answer])
    assert engine.stalled is None
    await engine.close()


async def test_the_limit_is_what_the_policy_can_serve(tiny: Path) -> None:
    """Without max_tokens an answer may be as long as that; one that is longer is refused by its own number."""
    engine = await start_engine(config(tiny, policy="vllm"))
    assert engine.request_limit == 120
    assert engine.validate([5] * 9, SamplingParams()).max_tokens == 111
    outputs: list[RequestOutput] = [
        out async for out in engine.generate([5] * 9, SamplingParams(temperature=0.0, ignore_eos=True), "r")
    ]
    assert outputs[-1].num_output_tokens == 111
    with pytest.raises(RequestError, match=r"'vllm' keeps a request.*is 120 tokens") as refused:
        engine.validate([5] * 9, greedy(200))
    assert (refused.value.param, refused.value.code) == ("max_tokens", "context_length_exceeded")
    await engine.close()
