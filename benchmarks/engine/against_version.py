"""Whether a change made anything slower: deciding, simulating, decode steps and prefills of two versions, in turns.

Each version runs in a process of its own (one_version.py), with its own source on the path, and both are asked for the
same measurement one after the other, round by round. What counts is CPU time, and the median of the rounds' ratios.

    python -m benchmarks.engine.against_version --before COMMIT [--rounds 9] [--name against_version]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from contextlib import ExitStack
from functools import partial
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import arguments, interleaved, paired_ratio, save, say
from longspan.models.catalog import resolve_model

ROOT = Path(__file__).parents[2]
CHILD = Path(__file__).with_name("one_version.py")
MEASUREMENTS = (
    "deciding loongserve 8", "deciding loongserve 64", "deciding elastic_fcfs 8", "deciding elastic_fcfs 64",
    "simulating elastic_fcfs", "simulating loongserve", "simulating medha",
    "decode 1", "decode 32", "decode 256", "prefill 1024", "prefill 8192",
)  # fmt: skip
SLOWER = 1.02


class Version:
    """One version's process."""

    def __init__(self, source: Path, model: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(CHILD), model], env={**os.environ, "PYTHONPATH": str(source)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> Version:
        self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def measure(self, what: str) -> dict[str, float]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        found: dict[str, float] = json.loads(self._answer())
        return found

    def _answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a version's process has ended with {self.process.wait()}")
        return line


def source_of(commit: str, folder: Path) -> Path:
    archive = subprocess.run(["git", "archive", commit, "src"], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    return folder / "src"


def compare(what: str, sides: dict[str, Version], rounds: int) -> dict[str, Any]:
    """By figure: the medians of both, and how much longer it takes now."""
    seen: dict[str, dict[str, list[float]]] = {}

    def side(name: str, number: int) -> float:
        for figure, seconds in sides[name].measure(what).items():
            if number >= 0:
                seen.setdefault(figure, {}).setdefault(name, []).append(seconds)
        return 0.0

    interleaved({name: partial(side, name) for name in sides}, rounds)
    return {
        figure: {
            "before_ms": 1e3 * median(times["before"]), "now_ms": 1e3 * median(times["now"]),
            "ratio": paired_ratio(times["now"], times["before"]),
        }
        for figure, times in seen.items()
    }  # fmt: skip


def main() -> int:
    options = arguments(
        (__doc__ or "").partition("\n")[0],
        [("before", "c59cf0b", "commit"), ("rounds", 9, "rounds"), ("model", "smollm2-135m", "model"),
         ("only", "", "measurements that begin so"), ("name", "against_version", "result; empty writes none")],
    )  # fmt: skip
    model = str(resolve_model(options.model).path)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        sources = {"before": source_of(options.before, Path(folder)), "now": ROOT / "src"}
        sides = {name: running.enter_context(Version(source, model)) for name, source in sources.items()}
        for what in MEASUREMENTS:
            if what.startswith(options.only):
                results[what] = compare(what, sides, options.rounds)
                for figure, found in results[what].items():
                    say(f"{what}, {figure}: {found['before_ms']:.3f} ms before, {found['now_ms']:.3f} now "
                        f"({found['ratio']:.3f})")  # fmt: skip
    if options.name:
        save(options.name, {"before": options.before, "measurements": results})
    return int(any(found["ratio"] > SLOWER for figures in results.values() for found in figures.values()))


if __name__ == "__main__":
    sys.exit(main())
