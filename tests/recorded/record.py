"""`python -m tests.recorded.record [NAME ...]` writes the logs of these runs, or of all, to `logs/NAME.jsonl.gz`."""

from __future__ import annotations

import gzip
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from tests.models.tiny import CONFIGS, write_tiny_engine_model
from tests.recorded.runs import RUNS

LOGS = Path(__file__).parent / "logs"


def path_of(name: str) -> Path:
    return LOGS / f"{name}.jsonl.gz"


def record(names: Sequence[str]) -> None:
    torch.set_num_threads(1)
    LOGS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model")
        write_tiny_engine_model(model, CONFIGS["llama"])
        for name in names:
            plain = Path(folder, f"{name}.jsonl")
            RUNS[name].record(plain, model)
            # The same events give the same file: without a time and a name in it.
            path_of(name).write_bytes(gzip.compress(plain.read_bytes(), mtime=0))
            print(f"{name}: {path_of(name).stat().st_size} bytes")


if __name__ == "__main__":
    unknown = [name for name in sys.argv[1:] if name not in RUNS]
    if unknown:
        sys.exit(f"there are no runs {', '.join(unknown)}; there are {', '.join(RUNS)}")
    record(sys.argv[1:] or list(RUNS))
