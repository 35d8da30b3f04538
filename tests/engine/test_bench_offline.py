"""`longspan bench latency` and `throughput` on a tiny model; instances are threads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from longspan.entrypoints import cli
from tests.conftest import DATA
from tests.engine.test_llm import tiny  # noqa: F401  (the fixture)

ENGINE = ["--executor", "inproc", "--kv-tokens", "300", "--dtype", "float32", "--threads-per-device", "1"]


def run(command: str, folder: Path, out: Path, *options: str) -> dict[str, Any]:
    assert cli.run(["bench", command, str(folder), *ENGINE, *options, "--json", str(out)]) == 0
    record: dict[str, Any] = json.loads(out.read_text())
    return record


def test_latency(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    options = ["--input-len", "40", "--output-len", "5", "--batch-size", "2", "--iterations", "3"]
    record = run("latency", tiny, tmp_path / "out.json", *options)
    results = record["results"]
    assert len(results["iterations"]) == 3 and results["e2e_s"]["count"] == 3
    for each in results["iterations"]:
        assert 0 < each["ttft_s"] < each["e2e_s"]
        assert each["step_s"] * 4 == pytest.approx(each["e2e_s"] - each["ttft_s"])
        assert each["output_tokens_per_s"] == pytest.approx(10 / each["e2e_s"])
    assert record["engine"]["dtype"] == "float32" and record["settings"]["batch_size"] == 2
    assert "decode step" in capsys.readouterr().out


def test_one_token_has_no_decode_step(tiny: Path, tmp_path: Path) -> None:  # noqa: F811
    results = run("latency", tiny, tmp_path / "out.json", "--input-len", "8", "--output-len", "1")["results"]
    assert results["decode_step_s"] is None and results["ttft_s"]["count"] == 5


def test_throughput(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    options = ["--num-prompts", "6", "--input-len", "20:40", "--output-len", "3"]
    results = run("throughput", tiny, tmp_path / "out.json", *options)["results"]
    assert (results["num_requests"], results["output_tokens"]) == (6, 18)
    assert 6 * 20 <= results["prompt_tokens"] <= 6 * 40
    assert results["prompt_tokens_per_s"] == pytest.approx(results["prompt_tokens"] / results["seconds"])
    assert "6 requests" in capsys.readouterr().out


def test_throughput_of_a_trace(tiny: Path, tmp_path: Path) -> None:  # noqa: F811
    trace = str(DATA / "azure_conv_2023_200.csv.gz")
    options = ("--num-prompts", "4", "--trace", trace, "--max-total-tokens", "64", "--fit", "scale")
    results = run("throughput", tiny, tmp_path / "out.json", *options)["results"]
    assert results["num_requests"] == 4
    assert results["prompt_tokens"] + results["output_tokens"] <= 4 * 64


@pytest.mark.parametrize(
    ("arguments", "says"),
    [("latency --iterations 0", "iterations is 0"), ("throughput --num-prompts 0", "num_prompts is 0"),
     ("latency --json nowhere/x", "no folder"), ("throughput --instances 0", "instances is 0")],
)  # fmt: skip
def test_bad_options(capsys: pytest.CaptureFixture[str], arguments: str, says: str) -> None:
    assert cli.run(["bench", *arguments.split()]) == 2
    assert says in capsys.readouterr().err
