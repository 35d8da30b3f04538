"""The script for a machine that is there for minutes: what goes wrong in one case costs no other, and nothing twice."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

CASES = '''
import os, threading
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
        "last": lambda: {"answer": 43},
    }.items():
        def noted(name=name, run=run):
            with begun.open("a") as file:
                file.write(name + "\\n")
            return run()
        yield Case(name, noted)
'''


@pytest.fixture
def evidence(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks" / "gpu"))
    import evidence

    monkeypatch.setattr(evidence, "CASE_S", 5.0)
    return evidence


def test_each_case_costs_no_other(evidence: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from record import Record

    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "trial.py").write_text(CASES)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{':'.join(sys.path)}")
    options = argparse.Namespace(device="cpu", shape="tiny", only="", out=tmp_path)

    def run() -> dict[str, dict[str, object]]:
        record = Record(tmp_path, "trial", torch.device("cpu"))
        evidence.PartRun(options, record, "trial", time.monotonic() + 1000.0).until_through()
        results: dict[str, dict[str, object]] = json.loads(record.path.read_text())["results"]["trial"]
        return results

    results = run()
    assert {name: result["status"] for name, result in results.items()} == {
        "first": "done", "ends the process": "crashed", "raises": "failed", "is wrong": "wrong",
        "is elsewhere": "not here", "hangs": "timed out", "last": "done",
    }  # fmt: skip
    assert results["first"]["figures"] == {"answer": 42}
    assert "last words" in str(results["ends the process"]["output"])
    assert "KeyError" in str(results["raises"]["trace"])
    assert results["is wrong"]["figures"] == {"error": 2.0}

    (parts / "mended").touch()
    (parts / "begun").unlink()
    results = run()
    assert {result["status"] for result in results.values()} == {"done", "not here"}
    assert (parts / "begun").read_text().split("\n") == ["ends the process", "raises", "is wrong", "hangs", ""]
