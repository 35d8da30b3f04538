"""What is in the package that pip installs."""

from __future__ import annotations

import zipfile
from email import message_from_string
from pathlib import Path

import pytest
from hatchling.build import build_wheel

from longspan import __version__

ROOT = Path(__file__).parents[2]


def test_the_wheel_has_everything_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    wheel = zipfile.ZipFile(tmp_path / build_wheel(str(tmp_path)))
    info = f"longspan-{__version__}.dist-info"
    files = {name for name in wheel.namelist() if not name.startswith(f"{info}/")}
    ours = [path for path in (ROOT / "src/longspan").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert files == {f"longspan/{path.relative_to(ROOT / 'src/longspan')}" for path in ours}
    assert {"longspan/py.typed", "longspan/__main__.py", "longspan/native/csrc/library.cpp"} <= files
    metadata = message_from_string(wheel.read(f"{info}/METADATA").decode())
    assert (metadata["Name"], metadata["Version"]) == ("longspan", __version__)
    assert metadata["License-Expression"] == "Apache-2.0" and f"{info}/licenses/LICENSE" in wheel.namelist()
    assert "Typing :: Typed" in metadata.get_all("Classifier", []) and metadata["Keywords"]
    assert {"plot", "dev"} <= set(metadata.get_all("Provides-Extra", []))
    assert wheel.read(f"{info}/entry_points.txt").decode().split("\n")[1] == "longspan = longspan.entrypoints.cli:main"
