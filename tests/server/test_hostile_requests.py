"""The first few hundred of the fuzzer's attacks (benchmarks/robustness), over real connections."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from benchmarks.robustness.grammar import attack
from benchmarks.robustness.hostile_client import Outcome, carry_out
from tests.processes import wait_until
from tests.server.fake_engine import MODEL
from tests.server.live_server import LiveServer, live_server

COUNT, SEED, AT_ONCE = 400, 3, 40
UNFINISHED_S = 1.0  # then the server closes what is not complete
WITHIN_S = 60.0


@pytest.fixture(scope="module")
def impatient() -> Iterator[LiveServer]:
    with live_server(header_timeout_s=UNFINISHED_S, body_timeout_s=UNFINISHED_S) as server:
        yield server


def test_every_attack_is_answered_or_ended(impatient: LiveServer) -> None:
    """No status 5xx, no answer that OpenAI's clients cannot read, no connection that is neither answered nor closed."""
    attacks = [attack(SEED, number, MODEL) for number in range(COUNT)]
    in_time = [each for each in attacks if "slow" not in each.name]  # those may be too slow for this server

    async def all_of_them() -> list[Outcome]:
        free = asyncio.Semaphore(AT_ONCE)

        async def one(number: int) -> Outcome:
            async with free:
                return await carry_out(in_time[number], impatient.port, WITHIN_S, WITHIN_S)

        return await asyncio.gather(*(one(number) for number in range(len(in_time))))

    outcomes = asyncio.run(all_of_them())
    assert [f"{outcome.attack.name}: {outcome.failure}" for outcome in outcomes if outcome.failure] == []
    statuses = {status for outcome in outcomes for status in outcome.statuses}
    assert statuses >= {200, 400, 404, 405, 408, 431}, "the attacks are not what they were"
    wait_until(lambda: impatient.engine.running == set())  # those who left may have done so just now


def test_an_attack_follows_from_its_number() -> None:
    first, again = ([attack(SEED, number, MODEL) for number in range(200)] for _ in range(2))
    assert first == again
    assert attack(SEED, 7, MODEL) != attack(SEED + 1, 7, MODEL)
    assert {each.part for each in first} == {"fields", "body", "headers", "target", "connection"}
