"""Runs that are kept: who is broken off goes on where it was, and another source is run again."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.policy import kept_runs


@dataclass(frozen=True)
class Asked:
    number: int
    policy: str = "fcfs"
    workload: str = "any"

    @property
    def key(self) -> str:
        return f"{self.policy}/{self.number}"


def work(asked: Asked, folder: Path, broken: int | None = None) -> dict[str, Any]:
    """Leave a line for each call."""
    if asked.number == broken:
        raise RuntimeError("broken off")
    with (folder / "calls").open("a") as file:
        file.write(f"{asked.key}\n")
    return {"attainment": float(asked.number), "balanced": 0.0}


def calls(folder: Path) -> list[str]:
    found = (folder / "calls").read_text().splitlines()
    (folder / "calls").unlink()
    return found


def test_what_was_run_before_a_cut_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_runs, "FOLDER", tmp_path / "kept")
    wanted = [Asked(number) for number in range(5)]
    with pytest.raises(RuntimeError, match="broken off"):
        kept_runs.all_of(wanted, partial(work, folder=tmp_path, broken=3), "some", 1)
    before = calls(tmp_path)
    assert {asked.key for asked in wanted[:3]} <= set(before)
    kept = kept_runs.read(tmp_path / "kept" / "some.jsonl").keys()
    assert {asked.key for asked in wanted[:3]} <= kept
    found = kept_runs.all_of(wanted, partial(work, folder=tmp_path), "some", 1)
    assert set(calls(tmp_path)) == {asked.key for asked in wanted} - kept
    assert [run["attainment"] for run in found] == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_what_follows_from_another_source_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_runs, "FOLDER", tmp_path / "kept")
    source, wanted = tmp_path / "source.py", [Asked(1), Asked(2, "srpt")]
    for text, again in (("a", 2), ("a", 0), ("b", 2)):
        source.write_text(text)
        (tmp_path / "calls").touch()
        kept_runs.all_of(wanted, partial(work, folder=tmp_path), "some", 1, source)
        assert len(calls(tmp_path)) == again
    assert len(kept_runs.read(tmp_path / "kept" / "some.jsonl")) == 2
