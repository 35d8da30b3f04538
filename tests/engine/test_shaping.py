"""Where nobody says how the cores are cut up, the first start measures, later ones know, and the log says why."""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from longspan import LLM
from longspan.config import EngineConfig
from longspan.core.news import News
from longspan.core.policies import create_policy
from longspan.core.policies.base import Policy, check_policy
from longspan.core.policies.longspan.policy import Longspan
from longspan.core.state import SchedulerState
from longspan.engine.preflight import Machine
from longspan.engine.shaping import with_shape
from longspan.models.catalog import resolve_model
from longspan.models.config import load_model_config
from longspan.phases import Phase, ignore
from longspan.tuning import memory
from tests.engine.test_llm import tiny  # noqa: F401  (the fixture)

MEASURING = "measuring how to cut up the cores, once for this model and machine"
SETTINGS: dict[str, Any] = {"dtype": "float32", "kv_tokens": 300}


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where measurements are kept: kernels stay where they are, compiled."""
    monkeypatch.setattr(memory, "private_folder", lambda name: tmp_path)
    return tmp_path


def shaped(model: Path, machine: Machine, own: Policy | None = None, **settings: Any) -> EngineConfig:
    """own: a policy of somebody's own."""
    config = EngineConfig(model=str(model), **settings)
    resolved = resolve_model(config.model)
    policy = own or create_policy(config.policy)
    shape = with_shape(config, policy, resolved, load_model_config(resolved.path), ignore, machine)
    return asyncio.run(shape)


def machine(cores: int, gpus: int = 0) -> Machine:
    return Machine(cores=cores, memory_bytes=1 << 34, free_bytes=1 << 34, count_gpus=lambda: gpus)


def test_the_first_start_measures_and_the_next_knows(
    tiny: Path, kept: Path, caplog: pytest.LogCaptureFixture  # noqa: F811
) -> None:  # fmt: skip
    starts: list[tuple[EngineConfig, list[str], str]] = []
    for _ in range(2):
        heard: list[Phase] = []
        caplog.clear()
        with caplog.at_level(logging.INFO, "longspan"), LLM(str(tiny), on_phase=heard.append, **SETTINGS) as llm:
            assert len(llm.generate([[1, 2, 3]])[0].token_ids) > 0
            starts.append((llm.engine.config, [phase.text for phase in heard], caplog.text))
        if not list(kept.glob("*.json")):
            break
    first, phases, log = starts[0]
    assert first.instances is not None and first.pp is not None and first.threads_per_device is not None
    assert MEASURING in phases
    assert re.search(r"threads? for balanced, measured in \d+\.\d s.*simulated: short TTFT", log)
    assert "for requests that name none: " in log
    if len(starts) == 1:
        assert "busy machine" in log  # what was measured beside others is not kept
        return
    second, later_phases, later_log = starts[1]
    assert MEASURING not in later_phases and "as measured before" in later_log
    assert (second.instances, second.pp, second.threads_per_device) == (first.instances, first.pp,
                                                                         first.threads_per_device)  # fmt: skip


@pytest.mark.parametrize("settings", [
    {"instances": 3}, {"pp": 2}, {"threads_per_device": 1}, {"tp": 2}, {"policy": "medha"}, {"executor": "inproc"},
    {"device": "cuda"}, {"pp_layers": (2,)},
])  # fmt: skip
def test_what_is_given_stays_and_nothing_is_measured(tiny: Path, kept: Path, settings: dict[str, Any]) -> None:  # noqa: F811
    config = EngineConfig(model=str(tiny), **settings)
    assert shaped(tiny, machine(2), **settings) == config
    assert not list(kept.iterdir())


def test_one_core_makes_one_instance(tiny: Path, kept: Path, caplog: pytest.LogCaptureFixture) -> None:  # noqa: F811
    with caplog.at_level(logging.INFO, "longspan"):
        config = shaped(tiny, machine(1))
    assert (config.instances, config.pp, config.threads_per_device) == (1, 1, 1)
    assert "1 instance of 1 thread for balanced: there is one core" in caplog.text


class Own(Longspan):
    """A policy of somebody's own is tuned if what it extends is."""

    name = "own"


class Duck:
    """A policy that extends nothing."""

    name, needs_cost_model, keeps_on_one_instance = "duck", False, False

    def schedule(self, state: SchedulerState, news: News, now: float) -> None:
        return

    def looks_ahead(self, state: SchedulerState, now: float) -> bool:
        return False


def test_a_policy_says_whether_it_is_tuned(tiny: Path, kept: Path) -> None:  # noqa: F811
    assert shaped(tiny, machine(1), Own()).instances == 1
    duck: Any = Duck()
    check_policy(duck)
    assert shaped(tiny, machine(1), duck).instances is None


def test_a_damaged_model_is_told_by_the_start_not_by_the_measurement(
    tiny: Path, kept: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture  # noqa: F811
) -> None:  # fmt: skip
    folder = tmp_path / "broken"
    folder.mkdir()
    for file in tiny.iterdir():
        (folder / file.name).write_bytes(file.read_bytes() if file.suffix != ".safetensors" else b"nothing")
    assert shaped(folder, machine(2)).instances is None
    assert "how to cut up 2 cores is measured at the next start: " in caplog.text


def test_the_objective_is_one_of_three() -> None:
    with pytest.raises(Exception, match="must be one of latency, balanced, throughput"):
        EngineConfig(objective="speed")  # type: ignore[arg-type]
