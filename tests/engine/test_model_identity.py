"""What a served model is known by, and what its makers advise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from longspan import LLM
from tests.engine.test_llm import tiny  # noqa: F401  (the fixture)

COMMON = {"instances": 1, "executor": "inproc", "kv_tokens": 64, "dtype": "float32"}


def identity(folder: Path, **settings: object) -> tuple[str, dict[str, float]]:
    with LLM(str(folder), **(COMMON | settings)) as llm:
        return llm.engine.fingerprint, dict(llm.engine.default_sampling)


def test_fingerprint_and_advice(tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:  # noqa: F811
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    advice = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "do_sample": True, "eos_token_id": 0}
    first, nothing = identity(folder)
    assert first.startswith("fp_") and len(first) == 13
    assert nothing == {}
    assert identity(folder, instances=2)[0] == first  # a seed gives the same text there
    (folder / "generation_config.json").write_text(json.dumps(advice))
    with caplog.at_level("INFO"):
        advised, told = identity(folder)
    assert told == {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
    assert "temperature 0.6, top_p 0.95, top_k 20" in caplog.text
    assert identity(folder, generation_config="none")[1] == {}
    weights = folder / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    assert identity(folder)[0] not in (first, advised)
