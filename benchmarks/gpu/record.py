"""The file of one command's results: kept from run to run, written after each case."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import command_line, machine
from longspan.files import write_whole

DONE = ("done", "not here")
OTHER_CODE = "of other code"
START = "(start)"  # in the place of a case: the part ended before its first one
ROOT = Path(__file__).parents[2]


class Record:
    """cases: by part and name. Those that are done, or cannot be done on this machine, are not run again.

    Only what this source gave on this machine counts; the rest stays until it is run again. planned: by part, the
    cases that this call wants.
    """

    def __init__(self, folder: Path, command: str, device: torch.device) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        card = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        self.path = folder / f"{command}_{re.sub('[^a-z0-9]+', '_', card.lower())}.json"
        self.source = source_digest()
        kept = json.loads(self.path.read_text())["results"] if self.path.is_file() else {}
        self.cases: dict[str, dict[str, Any]] = kept
        self.planned: dict[str, list[str]] = {}
        facts = machine() | card_facts(device)
        self.header = {
            "benchmark": f"gpu/{command}",
            "date": time.strftime("%Y-%m-%d"),
            "command": command_line(),
            "machine": facts,
            "source": self.source,
        }
        where = facts["cpu"] if device.type == "cpu" else f"{facts['device']}, driver {facts['driver']}"
        self.on = f"{where}, torch {facts['versions']['torch']}"

    def plan(self, part: str, names: list[str], wanted: list[str]) -> None:
        """names: all cases of the part; results of others, which the source no longer has, are dropped."""
        self.planned[part] = wanted
        kept = self.cases.get(part, {})
        if cases := {name: entry for name, entry in kept.items() if name in names or name == START}:
            self.cases[part] = cases

    def is_ours(self, entry: dict[str, Any]) -> bool:
        return entry.get("source") == self.source and entry.get("on") == self.on

    def done(self, part: str) -> list[str]:
        return [
            name for name, entry in self.cases.get(part, {}).items()
            if self.is_ours(entry) and entry["status"] in DONE and not entry.get("passing")
        ]  # fmt: skip

    def standing(self) -> str:
        """What a call finds of the cases that it wants."""
        done = sum(name in self.done(part) for part, names in self.planned.items() for name in names)
        entries = [self.cases.get(part, {}).get(name) for part, names in self.planned.items() for name in names]
        others = sum(entry is not None and not self.is_ours(entry) for entry in entries)
        return f"{done} cases already done, {others} of other code run again; {len(entries) - done} to run"

    def is_good(self) -> bool:
        """Nothing that this source gave is amiss, and every case that is wanted was reached."""
        return all(set(counts) <= {*DONE, OTHER_CODE} for counts in self.summary().values())

    def put(self, part: str, case: str, status: str, seconds: float, **more: Any) -> None:
        """source, on: what the case was run from, and where. earlier: outcomes that were not good stay to be seen."""
        entry = {"status": status, "seconds": round(seconds, 3), "source": self.source, "on": self.on, **more}
        cases = self.cases.setdefault(part, {})
        cases.pop(START, None)
        before = cases.get(case, {})
        earlier = before.pop("earlier", [])
        if before and before["status"] not in (*DONE, "cut off"):
            earlier.append(before)
        cases[case] = entry | ({"earlier": earlier} if earlier else {})
        self.save()

    def save(self) -> None:
        """At once as a whole: a reader, or a run that is cut off, never sees half a file."""
        text = json.dumps(self.header | {"summary": self.summary(), "results": self.cases}, indent=1)
        write_whole(self.path, f"{text}\n".encode())

    def summary(self) -> dict[str, dict[str, int]]:
        """How many cases of each part have which status, and how many that are wanted have none."""
        counts: dict[str, dict[str, int]] = {}
        for part in {**self.planned, **self.cases}:
            cases, wanted = self.cases.get(part, {}), self.planned.get(part, [])
            ours = {name: entry["status"] for name, entry in cases.items() if self.is_ours(entry)}
            statuses = list(ours.values())
            statuses += ["not reached" for name in wanted if name not in ours]
            statuses += [OTHER_CODE for name in cases if name not in ours and name not in wanted]
            counts[part] = dict(Counter(statuses))
        return counts


def source_digest() -> str:
    """Of the package, its C++ too, and of these files."""
    digest = hashlib.sha256()
    for folder in (ROOT / "src" / "longspan", ROOT / "benchmarks" / "gpu"):
        for file in sorted(f for f in folder.rglob("*") if f.suffix in (".py", ".h", ".cpp")):
            digest.update(f"{file.relative_to(ROOT)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def card_facts(device: torch.device) -> dict[str, Any]:
    """Of a GPU: what it is, and the software that drives it."""
    if device.type != "cuda":
        return {"device": "cpu"}
    properties = torch.cuda.get_device_properties(device)
    facts: dict[str, Any] = {
        "device": properties.name,
        "device_memory_gib": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "devices": torch.cuda.device_count(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
    }
    try:
        facts["driver"] = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True, text=True, check=True, timeout=20,
        ).stdout.split("\n")[0]  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        facts["driver"] = f"unknown: {error}"
    try:
        import triton

        facts["triton"] = triton.__version__
    except ImportError:
        facts["triton"] = "not installed"
    return facts
