"""What users say to the scheduler class, and what it says where that cannot be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from longspan.config import SchedulerConfig
from longspan.errors import ConfigError
from longspan.integrations.vllm.decider import Decider
from longspan.integrations.vllm.limits import HOOKS, check_config, check_hooks
from longspan.integrations.vllm.requests import service_level
from longspan.integrations.vllm.settings import Settings, read_settings
from longspan.integrations.vllm.versions import OVERRIDE, check_version
from longspan.service_level import ServiceLevel

CONFIG = SchedulerConfig(num_instances=1, kv_tokens=1000)


def test_importing_it_needs_neither_vllm_nor_torch() -> None:
    script = (
        "import sys; sys.modules['vllm'] = None; import longspan.integrations.vllm as v; "
        "from longspan.integrations.vllm import decider; assert 'torch' not in sys.modules; print(v.__all__)"
    )
    assert "LongspanScheduler" in subprocess.check_output([sys.executable, "-c", script], text=True)


def test_without_vllm_it_says_so_when_it_is_asked_for() -> None:
    import longspan.integrations.vllm as ours

    with pytest.raises(ImportError, match="needs vLLM"):
        _ = ours.LongspanScheduler
    with pytest.raises(AttributeError):
        _ = ours.Nothing


@pytest.mark.parametrize("version", ["0.32.0", "0.32.0+cpu", "0.32.1", "0.33.0"])
def test_versions_that_were_tried_pass(version: str) -> None:
    check_version(version)


@pytest.mark.parametrize("version", ["0.31.2", "0.34.0", "1.0", "0.3.3"])
def test_other_versions_are_refused_unless_that_is_overridden(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(OVERRIDE, raising=False)
    with pytest.raises(ImportError, match=f"0.32 and 0.33, and this is {version}.*{OVERRIDE}=1"):
        check_version(version)
    monkeypatch.setenv(OVERRIDE, "1")
    check_version(version)


@pytest.mark.parametrize(
    ("extra", "priority", "level"),
    [
        (None, 0, ServiceLevel()),
        ({"ttft_slo_ms": 500, "tpot_slo_ms": 40.0, "other": 1}, 2, ServiceLevel(0.5, 0.04, -2)),
        ({"ttft_slo_ms": "250"}, -1, ServiceLevel(0.25, None, 1)),
        ({"ttft_slo_ms": "soon", "tpot_slo_ms": -3}, 0, ServiceLevel()),
        ({"ttft_slo_ms": float("inf"), "tpot_slo_ms": [1]}, 0, ServiceLevel()),
        ({"ttft_slo_ms": 10**400, "tpot_slo_ms": True}, 0, ServiceLevel()),
        ({"ttft_slo_ms": "nan", "tpot_slo_ms": 1e308}, 0, ServiceLevel()),
        ({"ttft_slo_ms": 1e-320, "tpot_slo_ms": 1e9}, 0, ServiceLevel(None, 1e6)),
    ],
)
def test_a_request_says_what_it_needs(extra: Any, priority: int, level: ServiceLevel) -> None:
    assert service_level(extra, priority) == level


def test_settings_are_read_from_what_vllm_hands_on() -> None:
    assert read_settings({}) == read_settings(None) == read_settings({"other": 1}) == Settings()
    given = {"objective": "latency", "tpot_slo_s": 0.1, "event_log": "x.jsonl", "policy": {"c": 1.5}}
    assert read_settings({"longspan": given}) == Settings(
        objective="latency", tpot_slo_s=0.1, event_log=Path("x.jsonl"), policy={"c": 1.5}
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tpot": 1}, "has tpot, but may have objective, tpot_slo_s"), ("fast", "is 'fast'"),
        ({"objective": "speed"}, "must be one of latency"), ({"tpot_slo_s": 0}, "tpot_slo_s is 0"),
        ({"policy": {"burst": 0.5}}, "burst is 0.5"), ({"policy": {"aims": 1}}, "aims"),
        ({"ttft_slo_factor": 0.5}, "ttft_slo_factor is 0.5"), ({"ttft_slo_factor": None}, "must be a number"),
        ({"tpot_slo_s": "0.1"}, "tpot_slo_s is '0.1'"), ({"ttft_slo_floor_s": True}, "ttft_slo_floor_s is True"),
        ({"event_log": 5}, "event_log is 5"), ({"event_log": ""}, "event_log is ''"),
        ({"policy": "fast"}, "policy is 'fast'"), ({"policy": None}, "policy is None"),
        ({"policy": {5: 1}}, "policy is {5: 1}"),
    ],
)  # fmt: skip
def test_what_cannot_be_set_is_told(given: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Decider(CONFIG, read_settings({"longspan": given}))


def vllm_config(**changes: Any) -> Any:
    """The parts of a VllmConfig that are looked at."""
    parts: dict[str, Any] = {
        "scheduler_config": {"enable_chunked_prefill": True, "prefill_schedule_interval": 1},
        "parallel_config": {"pipeline_parallel_size": 1, "data_parallel_size": 1},
        "model_config": {"runner_type": "generate", "is_encoder_decoder": False, "is_diffusion": False},
        "kv_transfer_config": None, "ec_transfer_config": None, "speculative_config": None,
    }  # fmt: skip
    for name, value in changes.items():
        part, _, key = name.partition("__")
        parts[part] = {**parts[part], key: value} if key else value
    return SimpleNamespace(**{k: SimpleNamespace(**v) if isinstance(v, dict) else v for k, v in parts.items()})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scheduler_config__enable_chunked_prefill": False}, "chunked prefill turned off"),
        ({"scheduler_config__prefill_schedule_interval": 4}, "--prefill-schedule-interval"),
        ({"parallel_config__pipeline_parallel_size": 2}, "pipeline parallelism"),
        ({"parallel_config__data_parallel_size": 2}, "data parallelism in lockstep"),
        ({"model_config__runner_type": "pooling"}, "pooling models"),
        ({"model_config__is_encoder_decoder": True}, "encoder-decoder models"),
        ({"kv_transfer_config": object()}, "KV connectors"), ({"ec_transfer_config": object()}, "encoder connectors"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_by_name(change: dict[str, Any], said: str) -> None:
    check_config(vllm_config(), Settings())
    with pytest.raises(ConfigError, match=said):
        check_config(vllm_config(**change), Settings())


def test_drafts_go_without_an_event_log() -> None:
    check_config(vllm_config(speculative_config=object()), Settings())
    with pytest.raises(ConfigError, match="speculative decoding together with an event log"):
        check_config(vllm_config(speculative_config=object()), Settings(event_log=Path("x")))


def test_a_scheduler_that_lacks_what_ours_builds_on_is_refused() -> None:
    check_hooks(type("Whole", (), dict.fromkeys(HOOKS)))
    with pytest.raises(ConfigError, match=HOOKS[0]):
        check_hooks(type("Lacking", (), dict.fromkeys(HOOKS[1:])))
