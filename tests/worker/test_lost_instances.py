"""Real workers that die or stop while others wait for them: these go on with other work at once, and with those that
come in their place."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from longspan.core.actions import KVRange, RunBatch, Segment
from longspan.executor.base import LostInstance, NewInstance, News
from longspan.executor.multiproc import MultiprocExecutor
from longspan.sampling_params import SamplingParams
from longspan.worker.messages import BatchDone, Cancel, Run
from longspan.worker.sampling_state import SamplingState
from longspan.worker.spec import WorkerSpec
from tests.worker.test_handover import folder  # noqa: F401

INSTANCES, SLOTS, LENGTH, WAIT_S = 3, 64, 12, 120.0
LOST = 2


class Driver:
    """An executor, and what its workers answer; numbers of work count up."""

    def __init__(self, model: Path) -> None:
        specs = [
            WorkerSpec(
                model_path=str(model), instance=number, tp_rank=0, num_instances=INSTANCES, tp=1, dtype="float32",
                device="cpu", threads=1,
            )
            for number in range(INSTANCES)
        ]  # fmt: skip
        self.executor = MultiprocExecutor(specs, worker_timeout_s=2.0, max_restarts=10)
        self.news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self.number = 0

    def start(self) -> None:
        self.executor.start(self.news.put, lambda message: None)
        self.executor.allocate_kv(SLOTS)
        self.executor.survive_losses()

    def hear(self, kind: type[News]) -> News:
        news = self.news.get(timeout=WAIT_S)
        assert isinstance(news, kind), news
        return news

    def run(self, segment: Segment, tokens: range, group: tuple[int, ...]) -> int:
        self.number += 1
        batch = RunBatch(self.number, group, (segment,))
        ids = torch.tensor(list(tokens), dtype=torch.int32).numpy().tobytes()
        state = SamplingState.start(SamplingParams(temperature=0.0), seed=0)
        for instance in group:
            self.executor.submit(
                instance, Run(batch, {segment.request_id: ids}, {segment.request_id: state}, number=self.number)
            )
        return self.number

    def prefill(self, group: tuple[int, ...]) -> int:
        """A prompt that all of the group compute in a ring; each keeps a part."""
        share = LENGTH // len(group)
        store = tuple(KVRange(instance, i * share, (i + 1) * share) for i, instance in enumerate(group))
        return self.run(
            Segment("r", 0, LENGTH, group, store, residence=self.number + 1), range(1, LENGTH + 1), group
        )

    def decode(self, residence: int, group: tuple[int, ...]) -> int:
        """One token more of such a prompt, by the first of the group, whose query goes to all the others."""
        share = LENGTH // len(group)
        context = tuple((instance, share) for instance in group)
        segment = Segment(
            "r", LENGTH, 1, group[:1], (KVRange(group[0], LENGTH, LENGTH + 1),), context, residence=residence
        )
        return self.run(segment, range(7, 8), group)

    def token(self, number: int, group: tuple[int, ...]) -> int:
        """Wait for the batch; the token that it brings."""
        tokens = {}
        for _ in group:
            done = self.hear(BatchDone)
            assert isinstance(done, BatchDone) and done.batch_id == number
            tokens.update(done.tokens)
        return tokens["r"].token_id


@pytest.fixture
def driver(folder: Path) -> Iterator[Driver]:  # noqa: F811
    made = Driver(folder)
    try:
        made.start()
        yield made
    finally:
        made.executor.close()
    assert not multiprocessing.active_children()


def pid_of(driver: Driver, instance: int) -> int:
    return driver.executor.reports()[instance].pids[0]


def test_survivors_go_on_and_the_lost_come_back(driver: Driver) -> None:
    """In the middle of a ring prefill, which cannot end without the third; then of a decode; killed, then stopped."""
    every, pair = (0, 1, 2), (0, 1)
    expected = {group: driver.token(driver.prefill(group), group) for group in (every, pair)}
    residence = driver.number - 1
    following = driver.token(driver.decode(residence, every), every)
    for work, blow in (("prefill", signal.SIGKILL), ("decode", signal.SIGSTOP)):
        lost = pid_of(driver, LOST)
        if work == "decode":
            residence = driver.prefill(every)
            driver.token(residence, every)
        os.kill(lost, signal.SIGSTOP)  # so that what follows does not end before the blow
        void = driver.prefill(every) if work == "prefill" else driver.decode(residence, every)
        behind = driver.prefill(pair)  # and this waits behind it
        os.kill(lost, blow)
        news = driver.hear(LostInstance)
        assert isinstance(news, LostInstance) and news.instance == LOST
        assert ("ended" if blow is signal.SIGKILL else "no sign of life") in news.message
        assert not Path(f"/proc/{lost}").exists(), "it is fenced before anybody hears of it"
        for instance in pair:
            driver.executor.submit(instance, Cancel((void, behind)))
        again = driver.prefill(pair)
        assert driver.token(again, pair) == expected[pair], "before the third is back"
        assert driver.executor.reports()[LOST].state == "starting"
        assert driver.hear(NewInstance) == NewInstance(LOST, SLOTS)
        driver.executor.admit(LOST)
        residence = driver.prefill(every)
        assert driver.token(residence, every) == expected[every]
        assert driver.token(driver.decode(residence, every), every) == following
        report = driver.executor.reports()[LOST]
        assert report.state == "serving" and pid_of(driver, LOST) != lost


def test_an_engine_is_closed_while_an_instance_comes_back(driver: Driver) -> None:
    """And nothing is left, whenever that is: the fixture looks."""
    os.kill(pid_of(driver, LOST), signal.SIGKILL)
    driver.hear(LostInstance)
    end = time.monotonic() + WAIT_S
    while not driver.executor.reports()[LOST].pids:
        assert time.monotonic() < end
    driver.executor.close()
