"""The file: what is written is read again, and refused where it does not belong."""

from __future__ import annotations

import logging
from dataclasses import fields, replace
from pathlib import Path

import pytest

from longspan.core.costs.analytic import Hardware, ModelShape, analytic_cost_model
from longspan.core.costs.batch_shape import BatchShape
from longspan.core.costs.cost_model import Chunk
from longspan.errors import ConfigError
from longspan.sib import (
    Deployment,
    MeasuredIteration,
    MeasuredMigration,
    Measurements,
    ScalingInformationBase,
    package_versions,
    read_sib,
    write_sib,
)

SHAPE = ModelShape(
    num_layers=2, hidden_size=64, intermediate_size=128, num_heads=4, num_kv_heads=2, head_dim=16, vocab_size=100,
    weight_bytes=4, kv_bytes=4,
)  # fmt: skip
DEPLOYMENT = Deployment(
    model="some-model", architecture="LlamaForCausalLM", num_layers=2, hidden_size=64, intermediate_size=128,
    num_heads=4, num_kv_heads=2, head_dim=16, vocab_size=100, quantization="none", dtype="float32", instances=2, tp=1,
    executor="inproc", device="cpu", processor="A Processor", cores=2, kernels="avx2", threads_per_device=1,
)  # fmt: skip
SIB = ScalingInformationBase(
    deployment=DEPLOYMENT,
    versions=package_versions(),
    date="2026-01-02T03:04:05+00:00",
    measurements=Measurements(
        iterations=(
            MeasuredIteration(
                shape=BatchShape(
                    num_instances=2, chunks=(Chunk(8, 100), Chunk(9)), num_requests=3, context_tokens=40, num_masters=1
                ),
                seconds=1 / 3,
                samples=5,
            ),
        ),
        migrations=(MeasuredMigration(num_tokens=7, seconds=1e-7 / 3, samples=2),),
    ),
    cost_model=analytic_cost_model(SHAPE, Hardware(flops=3e9, bandwidth=7e9, link_bandwidth=1.1e9), 2),
)


def test_quantized_weights_are_small_and_kv_is_not() -> None:
    """Else a decode, which reads both, would seem to read KV several times as fast as it does."""
    shapes = {kind: replace(DEPLOYMENT, quantization=kind).model_shape for kind in ("none", "int8", "gguf")}
    assert shapes["gguf"].weight_bytes < 1 < shapes["int8"].weight_bytes < 2 < shapes["none"].weight_bytes
    assert {shape.kv_bytes for shape in shapes.values()} == {4}


def test_round_trip_to_the_very_bits(tmp_path: Path) -> None:
    path = tmp_path / "sib.json"
    write_sib(SIB, path)
    assert read_sib(path) == SIB
    assert [file.name for file in tmp_path.iterdir()] == ["sib.json"]


def test_what_it_was_measured_on_is_accepted() -> None:
    SIB.require(DEPLOYMENT, Path("sib.json"))


@pytest.mark.parametrize("name", [field.name for field in fields(Deployment)])
def test_each_difference_is_refused_by_name_with_both_values(name: str) -> None:
    value = getattr(DEPLOYMENT, name)
    other = value + 1 if isinstance(value, int) else "another"
    with pytest.raises(ConfigError) as refused:
        SIB.require(replace(DEPLOYMENT, **{name: other}), Path("sib.json"))
    message = str(refused.value)
    assert f"sib.json does not fit what is being served: {name} is {value!r} in the file, but {other!r} here" in message
    assert "longspan profile" in message
    assert all(f" {field.name} is" not in message for field in fields(Deployment) if field.name != name)


def test_other_versions_are_only_mentioned(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        SIB.require(DEPLOYMENT, Path("sib.json"))
        assert not caplog.records
        replace(SIB, versions={**SIB.versions, "torch": "1.0"}).require(DEPLOYMENT, Path("sib.json"))
    assert "torch 1.0" in caplog.text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is no scaling information base"),
        ("[]", "is no scaling information base"),
        ("\xff", "is no scaling information base"),
        ("{}", "format version None, but this reads 1"),
        ('{"format_version": 2}', "format version 2, but this reads 1"),
        ('{"format_version": 1}', "required field `deployment`"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "sib.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError) as refused:
        read_sib(path)
    assert says in str(refused.value) and str(path) in str(refused.value)


def test_a_model_with_holes_is_refused(tmp_path: Path) -> None:
    """The cost model checks itself, also when it comes from a file."""
    path = tmp_path / "sib.json"
    write_sib(SIB, path)
    path.write_text(path.read_text().replace('"num_masters": 2', '"num_masters": 3'))
    with pytest.raises(ConfigError, match="lacks decode coefficients for 2 instances, 2 masters"):
        read_sib(path)


def test_a_place_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: No such file.*`longspan profile` writes one"):
        read_sib(tmp_path / "nowhere.json")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_sib(SIB, tmp_path / "no folder" / "sib.json")
