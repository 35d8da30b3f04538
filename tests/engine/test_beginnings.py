"""When those who find the queue full are told to come again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from longspan.config import EngineConfig
from longspan.engine.assembly import start_engine
from longspan.engine.beginnings import LEAST_S, MOST_S, Beginnings
from longspan.errors import QueueFullError
from longspan.sampling_params import SamplingParams
from longspan.worker.messages import Reply
from tests.models.tiny import write_tiny_model


def test_it_is_the_mean_time_between_beginnings() -> None:
    beginnings = Beginnings()
    assert beginnings.next_s(5.0) == LEAST_S
    for number in range(100):
        beginnings.note(4.0 * number)
    assert beginnings.next_s(4.0 * 100) == 4.0
    assert beginnings.next_s(4.0 * 100 + 320) == 14.0  # nobody has begun for long
    assert beginnings.next_s(1e6) == MOST_S
    quick = Beginnings()
    for number in range(100):
        quick.note(0.01 * number)
    assert quick.next_s(1.0) == LEAST_S


async def test_a_full_queue_tells_it(tmp_path: Path) -> None:
    config = EngineConfig(
        model=str(write_tiny_model(tmp_path, max_position_embeddings=512)), instances=1, kv_tokens=500,
        executor="inproc", dtype="float32", threads_per_device=1, max_waiting=2, overload="off",
    )  # fmt: skip
    engine = await start_engine(config)
    try:
        heard: list[Reply] = []
        engine.core.on_reply = heard.append  # type: ignore[method-assign]  # nothing ends
        clock, ahead_s = engine.core.clock, 0.0
        engine.core.clock = lambda: clock() + ahead_s
        params = SamplingParams(max_tokens=50, ignore_eos=True)
        streams = [engine.generate([5] * 400, params, f"r{number}") for number in range(3)]
        asked = [asyncio.ensure_future(anext(stream)) for stream in streams]
        while engine.stats().num_waiting < 2:
            await asyncio.sleep(0)
        ahead_s = 30.0
        with pytest.raises(QueueFullError) as refused:
            await anext(engine.generate([5] * 400, params, "late"))
        assert 30.0 <= refused.value.retry_after_s <= MOST_S  # one began, and none since
        for each in asked:
            each.cancel()
        await asyncio.wait(asked)
    finally:
        await engine.close()
