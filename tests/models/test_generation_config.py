"""Sampling defaults from a model's folder: what is taken, and what is left out with a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from longspan.models.generation_config import load_generation_config


def write(folder: Path, **values: Any) -> Path:
    (folder / "generation_config.json").write_text(json.dumps(values))
    return folder


def test_what_transformers_saves(tmp_path: Path) -> None:
    theirs = GenerationConfig(do_sample=True, temperature=0.6, top_p=0.9, top_k=20, repetition_penalty=1.05)
    theirs.save_pretrained(tmp_path)
    read = load_generation_config(tmp_path)
    assert read == {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.05}
    assert isinstance(read["top_k"], int)


def test_nothing_there(tmp_path: Path) -> None:
    assert load_generation_config(tmp_path) == {}
    (tmp_path / "model.gguf").touch()
    assert load_generation_config(tmp_path / "model.gguf") == {}
    assert load_generation_config(write(tmp_path, eos_token_id=2, temperature=None)) == {}


def test_a_greedy_model_keeps_its_penalty_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(tmp_path, do_sample=False, temperature=0.7, top_p=0.5, repetition_penalty=1.2)
    assert load_generation_config(folder) == {"repetition_penalty": 1.2}
    assert "temperature, top_p left out: do_sample is false" in caplog.text


@pytest.mark.parametrize(("name", "value"), [
    ("temperature", -1), ("temperature", float("nan")), ("temperature", 10**400), ("temperature", True),
    ("top_p", 0), ("top_p", 1.5), ("top_p", "0.9"), ("top_k", -5), ("top_k", 1.5), ("top_k", 2**40),
    ("min_p", [0.1]), ("repetition_penalty", 0), ("repetition_penalty", float("inf")),
])  # fmt: skip
def test_a_bad_value_is_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, value: Any
) -> None:
    others = {"temperature": 0.5, "top_p": 0.5} | {name: value}
    assert load_generation_config(write(tmp_path, **others)) == {k: v for k, v in others.items() if k != name}
    assert f"generation_config.json: {name} is left out" in caplog.text


@pytest.mark.parametrize("text", ["{", "[1]", "\ud800", "[" * 100_000])
def test_a_broken_file_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str) -> None:
    (tmp_path / "generation_config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert load_generation_config(tmp_path) == {}
    assert "generation_config.json is left out" in caplog.text
