"""What was measured is kept for the next start, and measured anew where it cannot be trusted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from longspan.tuning.memory import Chosen, Known, recall, remember
from longspan.tuning.shapes import Shape
from tests.tuning.speeds import speeds

KNOWN = Known(speeds=speeds(1, 2), chosen={"balanced": Chosen(shape=Shape(1, 2, 1), reason="it is best")})


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_it_comes_back_as_it_was() -> None:
    assert recall("model") is None
    remember("model", KNOWN)
    assert recall("model") == KNOWN
    assert recall("other") is None


@pytest.mark.parametrize("damage", [
    lambda content: content[: len(content) // 2],
    lambda content: b"\xff" + content,
    lambda content: content.replace(b'"format_version": 1', b'"format_version": 2'),
    lambda content: content.replace(b'"threads": 1', b'"threads": "one"'),
    lambda content: json.dumps(json.loads(content) | {"speeds": [{}]}).encode(),
    lambda content: content.replace(b'"num_decodes": 8', b'"num_decodes": 1'),
])  # fmt: skip
def test_a_damaged_file_is_none(cache: Path, damage: object) -> None:
    remember("model", KNOWN)
    path = cache / "shapes" / "model.json"
    before = path.read_bytes()
    path.write_bytes(damage(before))  # type: ignore[operator]
    assert path.read_bytes() != before
    assert recall("model") is None


def test_a_file_that_others_may_write_is_none(cache: Path) -> None:
    remember("model", KNOWN)
    (cache / "shapes" / "model.json").chmod(0o666)
    assert recall("model") is None


def test_where_nothing_can_be_kept_the_start_goes_on(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.write_text("in the way")
    remember("model", KNOWN)
    assert "cannot be kept" in caplog.text
    assert recall("model") is None
