"""The file of one command's results: kept from run to run, written after each case."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import command_line, machine

DONE = ("done", "not here")  # such cases are not run again
ROOT = Path(__file__).parents[2]


class Record:
    """cases: by part and name. Those that are done, or cannot be done on this machine, are not run again."""

    def __init__(self, folder: Path, command: str, device: torch.device) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        card = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        self.path = folder / f"{command}_{re.sub('[^a-z0-9]+', '_', card.lower())}.json"
        self.source = source_digest()
        kept = json.loads(self.path.read_text())["results"] if self.path.is_file() else {}
        self.cases: dict[str, dict[str, Any]] = kept
        self.header = {
            "benchmark": f"gpu/{command}",
            "date": time.strftime("%Y-%m-%d"),
            "command": command_line(),
            "machine": machine() | card_facts(device),
            "source": self.source,
        }

    def done(self, part: str) -> list[str]:
        return [name for name, case in self.cases.get(part, {}).items() if case["status"] in DONE]

    def is_good(self) -> bool:
        return all(case["status"] in DONE for cases in self.cases.values() for case in cases.values())

    def put(self, part: str, case: str, status: str, seconds: float, **more: Any) -> None:
        """source: what the case was run from, where files changed between runs."""
        entry = {"status": status, "seconds": round(seconds, 3), "source": self.source, **more}
        cases = self.cases.setdefault(part, {})
        cases.pop("(start)", None)
        cases[case] = entry
        self.save()

    def save(self) -> None:
        """At once as a whole: a reader, or a run that is cut off, never sees half a file."""
        text = json.dumps(self.header | {"summary": self.summary(), "results": self.cases}, indent=1)
        temporary = self.path.with_suffix(".new")
        temporary.write_text(text + "\n")
        os.replace(temporary, self.path)

    def summary(self) -> dict[str, dict[str, int]]:
        """How many cases of each part have which status."""
        counts: dict[str, dict[str, int]] = {}
        for part, cases in self.cases.items():
            for entry in cases.values():
                of_part = counts.setdefault(part, {})
                of_part[entry["status"]] = of_part.get(entry["status"], 0) + 1
        return counts


def source_digest() -> str:
    """Of the package and of these files."""
    digest = hashlib.sha256()
    for folder in (ROOT / "src", ROOT / "benchmarks" / "gpu"):
        for file in sorted(folder.rglob("*.py")):
            digest.update(file.read_bytes())
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
