"""Kernels under NVIDIA's compute-sanitizer: reads and writes outside of what was allocated."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from case import Case, Figures, NotHereError, Where, WrongError
from longspan.worker.parent import end_with_parent
from subjects import attention_here

BUDGET_S = 60.0
_PROGRAMS = ("compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer")


def cases(where: Where) -> Iterator[Case]:
    for name, subject in attention_here(where.device).items():
        if subject.fast:
            yield Case(f"memcheck, {name}", lambda name=name: memcheck(where, f"{name}, bf16, head_dim 64, GQA 3"))


def memcheck(where: Where, case: str) -> Figures:
    program = next((found for program in _PROGRAMS if (found := shutil.which(program))), None)
    if not where.is_cuda or program is None:
        raise NotHereError("no GPU" if not where.is_cuda else "compute-sanitizer is not installed")
    evidence = Path(__file__).parents[1] / "evidence.py"
    with tempfile.TemporaryFile("w+") as output:
        command = [
            program, "--tool", "memcheck", "--error-exitcode", "77",
            sys.executable, str(evidence), "case", "kernels", case, "--device", "cuda",
        ]  # fmt: skip
        status = subprocess.run(
            command, stdout=output, stderr=subprocess.STDOUT, check=False, preexec_fn=end_with_parent
        ).returncode
        output.seek(0)
        tail = output.read()[-2000:]
    if status:
        raise WrongError(f"it ended with status {status}", {"case": case, "output": tail})
    return {"case": case, "errors": 0}
