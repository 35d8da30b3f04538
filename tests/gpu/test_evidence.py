"""The script for a machine that is there for minutes: what goes wrong in one case costs no other, and nothing twice."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.processes import is_alive, wait_until

CASES = '''
import os, threading
import torch
from pathlib import Path
from case import Case, NotHereError, WrongError

BUDGET_S = 1000.0
mended = Path(__file__).with_name("mended").exists()
begun = Path(__file__).with_name("begun")

def broken(how):
    return lambda: {"mended": True} if mended else how()

def raises(error):
    raise error

def cases(where):
    for name, run in {
        "first": lambda: {"answer": 42},
        "ends the process": broken(lambda: print("last words", flush=True) or os.abort()),
        "raises": broken(lambda: {}["nothing"]),
        "is wrong": broken(lambda: raises(WrongError("too large", {"error": 2.0}))),
        "is elsewhere": lambda: raises(NotHereError("no such thing")),
        "hangs": broken(lambda: threading.Event().wait()),
        "finds no room": broken(lambda: raises(NotHereError("no memory", passing=True))),
        "draws": lambda: {"drawn": torch.rand(2).tolist()},
        "last": lambda: {"answer": 43},
    }.items():
        def noted(name=name, run=run):
            with begun.open("a") as file:
                file.write(name + "\\n")
            torch.rand(1)
            return run()
        yield Case(name, noted)
'''


ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "benchmarks" / "gpu" / "evidence.py")


@pytest.fixture
def evidence(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "gpu"))
    import evidence

    monkeypatch.setattr(evidence, "CASE_S", 5.0)
    return evidence


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one part, "trial", which takes the place of the others."""
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "trial.py").write_text(CASES)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{':'.join(sys.path)}")
    return folder


def test_each_case_costs_no_other(evidence: ModuleType, tmp_path: Path, parts: Path) -> None:
    from record import Record

    options = argparse.Namespace(device="cpu", shape="tiny", only="", out=tmp_path)

    def run() -> dict[str, dict[str, object]]:
        record = Record(tmp_path, "trial", torch.device("cpu"))
        evidence.PartRun(options, record, "trial", time.monotonic() + 1000.0).until_through()
        results: dict[str, dict[str, object]] = json.loads(record.path.read_text())["results"]["trial"]
        return results

    results = run()
    assert {name: result["status"] for name, result in results.items()} == {
        "first": "done", "ends the process": "crashed", "raises": "failed", "is wrong": "wrong",
        "is elsewhere": "not here", "hangs": "timed out", "finds no room": "not here", "draws": "done", "last": "done",
    }  # fmt: skip
    assert results["first"]["figures"] == {"answer": 42}
    assert "last words" in str(results["ends the process"]["output"])
    for name in ("ends the process", "hangs"):
        assert "in noted" in str(results[name]["output"])  # its stack
    assert "KeyError" in str(results["raises"]["trace"])
    assert results["is wrong"]["figures"] == {"error": 2.0}

    (parts / "mended").touch()
    (parts / "begun").unlink()
    results = run()
    assert {result["status"] for result in results.values()} == {"done", "not here"}
    again = ["ends the process", "raises", "is wrong", "hangs", "finds no room", ""]
    assert (parts / "begun").read_text().split("\n") == again
    (earlier,) = results["is wrong"]["earlier"]  # type: ignore[misc]  # of JSON, which says `object`
    assert earlier["status"] == "wrong" and earlier["figures"] == {"error": 2.0}
    assert "earlier" not in results["first"]


def test_only_what_this_source_gave_on_this_machine_is_done(evidence: ModuleType, tmp_path: Path) -> None:
    from record import Record

    names = ["a", "b", "c", "d"]
    record = Record(tmp_path, "trial", torch.device("cpu"))
    for name in ("a", "b", "gone"):
        record.put("part", name, "done", 1.0)
    record.on = "another card"
    record.put("part", "c", "done", 1.0)

    record = Record(tmp_path, "trial", torch.device("cpu"))
    record.plan("part", names, names)
    assert record.done("part") == ["a", "b"]
    assert record.standing() == "2 cases already done, 1 of other code run again; 2 to run"
    assert record.summary() == {"part": {"done": 2, "not reached": 2}} and not record.is_good()

    record = Record(tmp_path, "trial", torch.device("cpu"))
    record.source = "changed"
    record.plan("part", names, ["a"])
    assert record.standing() == "0 cases already done, 1 of other code run again; 1 to run"
    record.put("part", "a", "wrong", 1.0)
    record.put("part", "a", "done", 1.0)
    assert record.summary() == {"part": {"done": 1, "of other code": 2}} and record.is_good()


def test_inputs_are_drawn_by_the_case_s_name(evidence: ModuleType, tmp_path: Path, parts: Path) -> None:
    from record import Record

    def drawn(only: str) -> dict[str, object]:
        record = Record(tmp_path / str(len(only)), "trial", torch.device("cpu"))
        options = argparse.Namespace(device="cpu", shape="tiny", only=only)
        evidence.PartRun(options, record, "trial", time.monotonic() + 100.0).until_through()
        return record.cases["trial"]["draws"]

    (parts / "mended").touch()
    alone, behind_others = drawn("draws"), drawn("")
    assert alone["figures"] == behind_others["figures"] and alone["seed"] == behind_others["seed"]


def test_a_case_that_its_part_has_no_time_for_is_cut_off(
    evidence: ModuleType, tmp_path: Path, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from record import Record

    monkeypatch.setattr(evidence, "CASE_S", 100.0)
    record = Record(tmp_path, "trial", torch.device("cpu"))
    record.plan("trial", ["hangs", "last"], ["hangs", "last"])
    run = evidence.PartRun(
        argparse.Namespace(device="cpu", shape="tiny", only="hangs"), record, "trial", time.monotonic() + 100.0
    )
    take = run.take

    def taken(event: dict[str, object]) -> None:
        take(event)
        run.deadline = time.monotonic() + 0.5

    run.take = taken
    run.until_through()
    assert record.summary() == {"trial": {"cut off": 1, "not reached": 1}}


def test_a_part_ends_with_the_script(tmp_path: Path, parts: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(Path(SCRIPT).parent), str(tmp_path)], stdout=subprocess.PIPE
    )
    try:
        begun = parts / "begun"
        wait_until(begun.exists)
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        assert len(children) == 1
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.communicate()
    wait_until(lambda: not is_alive(int(children[0])))


PARENT = """
import argparse, sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import evidence, torch
from record import Record
options = argparse.Namespace(device="cpu", shape="tiny", only="hangs")
record = Record(Path(sys.argv[2]), "trial", torch.device("cpu"))
evidence.PartRun(options, record, "trial", time.monotonic() + 100.0).until_through()
"""


def test_a_call_for_no_case_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "speed", "--device", "cpu", "--shape", "tiny", "--only", "nosuch"]
    ended = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and "'nosuch'" in ended.stdout and "ceilings: copy, tiny" in ended.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["correctness", "speed"])
def test_the_documented_counts_are_the_recorded_ones(command: str) -> None:
    record = json.loads((ROOT / "benchmarks" / "results" / "gpu" / f"{command}_cpu.json").read_text())
    text = (ROOT / "docs" / "gpu.md").read_text()
    for part, counts in record["summary"].items():
        assert set(counts) <= {"done", "not here"}
        assert f"| {part} | {counts.get('done', 0)} | {counts.get('not here', 0)} |\n" in text
    assert f"{record['machine']['versions']['torch']}, Python {record['machine']['python']}" in text
