"""Every benchmark can be started, and who names one names a file that is there."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_ELSEWHERE = {"protocol", "vllm_cpu", "vllm_server", "llama_cpp_cpu", "llama_cpp_slots", "transformers_cpu"}
"""Scripts that run in virtual environments of vLLM's, llama.cpp's and transformers' own; those of gpu/ have tests."""
_MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "benchmarks").glob("**/*.py")
    if path.stem not in _ELSEWHERE and "gpu" not in path.parts
)
_NAMED = re.compile(r"\b(benchmarks/[a-z0-9_/]+\.(?:py|sh|cpp))\b|-m (benchmarks(?:\.[a-z0-9_]+)+)")


@pytest.mark.parametrize("module", _MODULES)
def test_it_can_be_imported(module: str) -> None:
    importlib.import_module(module)


def test_those_that_are_named_are_there() -> None:
    folders = ("benchmarks", "docs", "scripts", "src", "tests")
    files = [*ROOT.glob("*.md"), ROOT / "Makefile", *(path for name in folders for path in (ROOT / name).rglob("*"))]
    named = {
        (str(path.relative_to(ROOT)), found[1] or found[2].replace(".", "/") + ".py")
        for path in files if path.is_file() and path.suffix in ("", ".cpp", ".h", ".md", ".py", ".sh")
        for found in _NAMED.finditer(path.read_text())
    }  # fmt: skip
    assert len(named) > 50
    assert [(where, what) for where, what in sorted(named) if not (ROOT / what).exists()] == []
