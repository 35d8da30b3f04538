"""What a decode step asks of a GPU does not grow."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from longspan.sampling_params import SamplingParams
from tests.gpu.decode_step import CASES, case_name, decode_counts

RECORD = Path(__file__).parents[2] / "benchmarks" / "results" / "gpu" / "decode_counts.json"


@pytest.fixture(scope="module")
def recorded() -> dict[str, list[dict[str, int]]]:
    """By case: the totals of each instance."""
    record: dict[str, Any] = json.loads(RECORD.read_text())
    return {step["case"]: step["instances"] for step in record["results"]["steps"]}


@pytest.mark.parametrize("case", CASES, ids=[case_name(*case) for case in CASES])
def test_a_decode_step_asks_no_more(
    recorded: dict[str, list[dict[str, int]]], case: tuple[int, int, SamplingParams]
) -> None:
    name = case_name(*case)
    counts = decode_counts(*case)
    for instance, (now, before) in enumerate(zip(counts, recorded[name], strict=True)):
        for kind, number in now.totals().items():
            asked = f"{name}, instance {instance}: {number} {kind}, {before[kind]} before"
            assert number <= before[kind], f"{asked}: {dict(getattr(now, kind).most_common())}"
            if number < before[kind]:
                warnings.warn(
                    f"{name}: {number} {kind} instead of {before[kind]}; hold that by benchmarks/gpu/decode_counts.py",
                    stacklevel=1,
                )


def test_the_documented_numbers_are_the_recorded_ones(recorded: dict[str, list[dict[str, int]]]) -> None:
    text = (RECORD.parents[3] / "docs" / "gpu.md").read_text()
    for name, instances in recorded.items():
        for number, totals in enumerate(instances):
            assert f"| {name} | {number} | {' | '.join(map(str, totals.values()))} |\n" in text


def test_what_is_counted() -> None:
    """Each way in which values cross, by number; a GPU's refusals are refused."""
    from tests.gpu.pretend_gpu import DEVICE, PretendGPU

    with PretendGPU() as gpu:
        ours = torch.zeros(3, 4, device=DEVICE)
        index = torch.tensor([0, 2], device=DEVICE)
        assert gpu.counts.totals() == {"operators": 1, "uploads": 1, "synchronising": 0}
        ours[index] += 1  # a gather, an addition, a scatter
        assert gpu.counts.totals() == {"operators": 4, "uploads": 1, "synchronising": 0}
        assert ours[[0, 1]].tolist() == [[1.0] * 4, [0.0] * 4]  # the list goes up, the rows come down
        assert gpu.counts.totals() == {"operators": 5, "uploads": 2, "synchronising": 1}
        ours[1:].view(8).fill_(3)  # views are none
        ours.copy_(torch.arange(12.0).view(3, 4))
        assert gpu.counts.totals() == {"operators": 6, "uploads": 3, "synchronising": 1}
        assert ours.sum().item() == 66.0
        assert len(ours[ours > 8]) == 3 and len(ours.nonzero()) == 11  # shapes that depend on values
        assert gpu.counts.totals() == {"operators": 10, "uploads": 3, "synchronising": 4}
        with pytest.raises(RuntimeError, match="on the device and on the host"):
            ours + torch.ones(3, 4)
    with pytest.raises(RuntimeError, match="has not entered"):
        ours + 1
