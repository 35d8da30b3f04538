"""What is refused before a model is loaded, for machines that are not here."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from longspan.config import EngineConfig
from longspan.core.policies import create_policy
from longspan.engine import preflight
from longspan.engine.preflight import Machine, check_model, check_settings, count_gpus
from longspan.errors import ConfigError
from longspan.models.catalog import ResolvedModel
from longspan.models.config import ModelConfig, load_model_config

GB = 1_000_000_000
MACHINE = Machine(cores=8, memory_bytes=32 * GB, free_bytes=30 * GB, count_gpus=lambda: 0)
ELASTIC, ALONE = create_policy("elastic_fcfs"), create_policy("vllm")


@pytest.fixture(scope="module")
def shape(model: ResolvedModel) -> ModelConfig:
    return load_model_config(model.path)


@pytest.mark.parametrize(
    ("settings", "policy", "says"),
    [
        ({"kv_tokens": 15}, ELASTIC, "2 instances would hold 30 tokens"),
        ({"kv_tokens": 31}, ALONE, "an instance would hold 31 tokens"),
        ({"kv_tokens": 31, "instances": 1}, ELASTIC, "an instance would hold 31 tokens"),
        ({"kv_tokens": 3, "max_model_len": 8}, ALONE, "no request of 8 could be served"),
        ({"max_model_len": 1}, ELASTIC, "at least 2 tokens"),
        ({"device": "cpu", "transport": "nccl"}, ELASTIC, "--transport auto"),
    ],
)
def test_settings_that_no_request_survives(settings: dict[str, int], policy: preflight.Policy, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_settings(EngineConfig(**settings), policy, MACHINE)  # type: ignore[arg-type]


@pytest.mark.parametrize(("settings", "policy"), [({"kv_tokens": 16}, ELASTIC), ({"kv_tokens": 32}, ALONE),
                                                  ({"kv_tokens": 8, "max_model_len": 8}, ALONE)])  # fmt: skip
def test_the_smallest_that_pass(settings: dict[str, int], policy: preflight.Policy) -> None:
    check_settings(EngineConfig(**settings), policy, MACHINE)  # type: ignore[arg-type]


def test_gpus_are_counted_before_workers_ask_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(gpus: int, torch_version: str = "2.13.0", **settings: object) -> str:
        monkeypatch.setattr(preflight, "version", lambda _: torch_version)
        machine = replace(MACHINE, count_gpus=lambda: gpus)
        try:
            check_settings(EngineConfig(device="cuda", **settings), ELASTIC, machine)  # type: ignore[arg-type]
        except ConfigError as error:
            return str(error)
        return ""

    assert "shows no GPU here" in refusal(0)
    assert "built for CPUs only" in refusal(8, "2.13.0+cpu")
    assert "need 2 GPUs, but here are 1" in refusal(1)
    assert refusal(1, executor="inproc") == refusal(1, instances=1) == refusal(2) == ""
    assert "need 8 GPUs" in refusal(4, tp=2, pp=2)
    assert "--transport auto" in refusal(2, transport="gloo")
    assert "--quantization none" in refusal(2, quantization="int8")


def test_the_driver_is_asked_in_a_process_of_its_own() -> None:
    """Here there may be GPUs or not; the answer is torch's either way."""
    import torch

    assert count_gpus() == (torch.cuda.device_count() if torch.version.cuda else count_gpus())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tp": 5}, "tp is 5"),
        ({"tp": 2, "pp": 31}, "only 30 layers"),
        ({"pp": 2, "pp_layers": (1, 2)}, "adds up to 3"),
        ({"max_model_len": 8193}, "8192 tokens"),
        ({"kv_tokens": 1_000_000}, "which takes 23.0 GB on each of 2 instances, but this machine has 32.0 GB"),
    ],
)
def test_what_the_model_does_not_allow(
    model: ResolvedModel, shape: ModelConfig, settings: dict[str, object], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        check_model(EngineConfig(**settings), ELASTIC, model, shape, MACHINE)  # type: ignore[arg-type]


def test_a_folder_has_no_gguf_weights(tmp_path: Path, shape: ModelConfig) -> None:
    folder = ResolvedModel(name="m", path=tmp_path, kind="hf")
    with pytest.raises(ConfigError, match="gguf file; use --quantization int8"):
        check_model(EngineConfig(quantization="gguf"), ELASTIC, folder, shape, MACHINE)


def test_memory_and_threads_that_will_not_do_are_warned_of(
    model: ResolvedModel, shape: ModelConfig, caplog: pytest.LogCaptureFixture
) -> None:
    def warnings(config: EngineConfig, machine: Machine = MACHINE) -> str:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            check_settings(config, ELASTIC, machine)
            check_model(config, ELASTIC, model, shape, machine)
        return caplog.text

    assert warnings(EngineConfig()) == ""
    small = replace(MACHINE, free_bytes=GB)
    assert "weights of 2 copies: 1.1 GB" in warnings(EngineConfig(dtype="float32"), small)  # 135 M x 4 bytes, twice
    assert "weights of 1 copies: 0.5 GB" in warnings(EngineConfig(dtype="float32", executor="inproc", kv_tokens=30_000),
                                                     small)  # fmt: skip
    assert "0.1 GB" in warnings(EngineConfig(instances=1), replace(small, free_bytes=1))  # 4 bits, as they are stored
    assert "4 threads on each of 3 devices" in warnings(EngineConfig(instances=3, threads_per_device=4))
    assert warnings(EngineConfig(instances=2, threads_per_device=4)) == ""
