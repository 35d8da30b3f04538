"""The event log of a real engine: it names who decided, goes on in pieces, and never stops serving."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from longspan import LLM, SamplingParams
from longspan.core.policies.elastic_fcfs import ElasticFcfs
from longspan.core.state import SchedulerState
from longspan.errors import ConfigError, ReplayError
from longspan.metrics.event_log import read_event_log, replay
from tests.models.tiny import write_tiny_model


class StepByStep(ElasticFcfs):
    """A policy of one's own: no iteration is queued behind a running one."""

    name = "step_by_step"

    def looks_ahead(self, state: SchedulerState, now: float) -> bool:
        return False


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"), max_position_embeddings=512)


def start(folder: Path, **settings: Any) -> LLM:
    return LLM(str(folder), executor="inproc", dtype="float32", threads_per_device=1, kv_tokens=300, **settings)


def ask(llm: LLM, count: int = 4) -> None:
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    for answer in llm.generate([[1 + number] * 30 for number in range(count)], params):
        assert len(answer.token_ids) == 8
    llm.wait_idle()


def test_a_full_disk_ends_the_log_and_nothing_else(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    with start(tiny, event_log=Path("/dev/full")) as llm:
        ask(llm)
        ask(llm)
        llm.engine.core.records.close()  # its thread has written by then
        assert llm.stats().event_log_errors == 1
        ask(llm)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "/dev/full" in warning and "No space left" in warning and "serving goes on" in warning


def test_the_log_goes_on_in_pieces_and_says_where_it_is(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "log").write_text("of somebody else")
    with (
        caplog.at_level(logging.INFO),
        start(tiny, event_log=tmp_path / "log", event_log_max_bytes=4096, event_log_keep=50) as llm,
    ):
        for _ in range(10):
            ask(llm, 8)
        assert llm.stats().event_log_errors == 0
    assert (tmp_path / "log").read_text() == "of somebody else"
    assert f"the event log is {tmp_path / 'log-2'}" in caplog.text
    log = read_event_log(tmp_path / "log-2")
    assert len(log.pieces) >= 2 and replay(tmp_path / "log-2.2") is None


def test_the_log_of_a_policy_of_ones_own(tiny: Path, tmp_path: Path) -> None:
    with start(tiny, policy=StepByStep(), event_log=tmp_path / "log") as llm:
        ask(llm)
    log = read_event_log(tmp_path / "log")
    assert (log.policy, log.config.policy) == ("step_by_step", "step_by_step")
    assert log.own_policy == f"{__name__}:StepByStep"
    with pytest.raises(ReplayError, match=r"StepByStep.*policy="):
        replay(tmp_path / "log")
    assert replay(tmp_path / "log", StepByStep()) is None
    assert replay(tmp_path / "log", ElasticFcfs()) is not None


def test_a_path_that_is_wrong_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder"):
        start(tmp_path / "no model either", event_log=tmp_path / "none" / "log")
