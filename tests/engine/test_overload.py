"""What becomes of requests that are late, from the policy to who asked: errors, estimates, the log."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from longspan import LLM, SamplingParams
from longspan.config import EngineConfig, Overload
from longspan.core.decision import SERVED_LATE, Decision
from longspan.core.news import News
from longspan.core.policies.elastic_fcfs import ElasticFcfs
from longspan.core.state import SchedulerState
from longspan.engine.assembly import start_engine
from longspan.engine.async_llm import AsyncLLM
from longspan.engine.beginnings import LEAST_S
from longspan.engine.lateness_log import EVERY_S, LatenessLog
from longspan.errors import OverloadedError, QueueFullError
from longspan.service_level import IfLate, ServiceLevel
from tests.models.tiny import write_tiny_model


class Late(ElasticFcfs):
    """Says of everyone that it is late. retry_after_s: what it tells those that it refuses."""

    def __init__(self, retry_after_s: float | None = 2.3) -> None:
        super().__init__()
        self.retry_after_s = retry_after_s

    def schedule(self, state: SchedulerState, news: News, now: float) -> None:
        for request in news.arrived:
            if state.config.overload == "enforce" and request.service.if_late != "serve":
                state.refuse(request.id, "The server is overloaded.", "late", self.retry_after_s)
            else:
                state.explain(Decision(SERVED_LATE, (request.id,)))
        super().schedule(state, news, now)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"), max_position_embeddings=512)


def settings(**more) -> dict:
    return {"instances": 1, "kv_tokens": 300, "dtype": "float32", "threads_per_device": 1, "executor": "inproc"} | more


def greedy(max_tokens: int, if_late: IfLate | None = None) -> SamplingParams:
    return SamplingParams(
        temperature=0.0, max_tokens=max_tokens, ignore_eos=True, service=ServiceLevel(if_late=if_late)
    )


async def tokens(engine: AsyncLLM, request_id: str, params: SamplingParams) -> int:
    return sum([len(output.token_ids) async for output in engine.generate([5] * 9, params, request_id)])


@pytest.mark.parametrize(("told", "retry_after_s"), [(2.3, 2.3), (None, LEAST_S)])
async def test_who_is_late_gets_an_error_of_its_own(tiny: Path, told: float | None, retry_after_s: float) -> None:
    engine = await start_engine(EngineConfig(model=str(tiny), **settings()), Late(told))
    try:
        for if_late in (None, "refuse"):
            with pytest.raises(OverloadedError, match="overloaded") as refused:
                await tokens(engine, "r", greedy(5, if_late))
            assert refused.value.retry_after_s == retry_after_s
            assert not isinstance(refused.value, QueueFullError)
        assert await tokens(engine, "r", greedy(5, "serve")) == 5
        await engine.idle()
        assert engine.error is None
    finally:
        await engine.close()


def test_a_batch_is_served_however_late(tiny: Path) -> None:
    with LLM(str(tiny), policy=Late(), **settings()) as llm:
        answers = llm.generate([[5] * 9, [6] * 9], greedy(4))
        assert [len(answer.token_ids) for answer in answers] == [4, 4]
        assert llm.generate([[5] * 9], [SamplingParams(max_tokens=3, ignore_eos=True)])[0].token_ids
        with pytest.raises(OverloadedError):  # unless it asks for the other
            llm.generate([[5] * 9], greedy(4, "refuse"))


async def test_an_estimate_can_be_asked_for_until_the_first_token(tiny: Path) -> None:
    engine = await start_engine(EngineConfig(model=str(tiny), **settings(policy="longspan")))
    try:
        assert engine.estimate("r") is None
        serving = asyncio.ensure_future(tokens(engine, "r", greedy(3)))
        await asyncio.sleep(0)  # it is admitted; what its worker says has yet to be heard
        estimate = engine.estimate("r")
        assert estimate is not None and 0 < estimate.median_s <= estimate.quote_s
        assert await serving == 3
        got = [engine.estimate("s") async for _ in engine.generate([5] * 100, greedy(3), "s")]
        assert got == [None] * 3
    finally:
        await engine.close()
    assert engine.estimate("s") is None


async def test_an_estimate_of_a_policy_that_does_not_predict(tiny: Path) -> None:
    engine = await start_engine(EngineConfig(model=str(tiny), **settings(policy="elastic_fcfs")))
    try:
        got = [engine.estimate("r") async for _ in engine.generate([5] * 9, greedy(2), "r")]
        assert got == [None, None]
    finally:
        await engine.close()


@pytest.mark.parametrize(("overload", "late"), [("warn", 3), ("off", 3), ("enforce", 0)])
async def test_those_served_late_are_counted(tiny: Path, overload: Overload, late: int) -> None:
    engine = await start_engine(EngineConfig(model=str(tiny), **settings(overload=overload)), Late())
    try:
        for number in range(3):
            try:
                assert await tokens(engine, f"r{number}", greedy(2)) == 2
            except OverloadedError:
                assert overload == "enforce"
        assert engine.core.num_served_late == late
    finally:
        await engine.close()


def test_the_log_tells_once_a_minute_how_many(caplog: pytest.LogCaptureFixture) -> None:
    now = 1000.0
    log = LatenessLog(lambda: now)
    with caplog.at_level(logging.WARNING):
        log.tell(0)
        assert not caplog.messages
        log.tell(1)
        for count in range(2, 9):
            now += EVERY_S / 10
            log.tell(count)
        assert [message.split(",")[0] for message in caplog.messages] == ["overload: 1 request is served"]
        now += EVERY_S
        log.tell(8)
        assert caplog.messages[1].startswith("overload: 7 requests are served")
        now += EVERY_S
        log.tell(8)
    assert len(caplog.messages) == 2
