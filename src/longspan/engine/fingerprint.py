"""A short name for all that may change what a seed gives: OpenAI's `system_fingerprint`."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from longspan.sib import Deployment

_SAMPLES = 16
_SAMPLE_BYTES = 65536
_READ_WHOLE = 2**20  # bytes


def fingerprint(model: Path, deployment: Deployment, rope_scaling: str | None = None) -> str:
    """Return `fp_` and ten hex digits. A seed gives the same text on any number of instances, so these do not count.

    Files are known by their size and by parts of them, so that it takes a moment however large they are.
    """
    digest = hashlib.sha256()
    for value in (_version("longspan"), _version("torch"), deployment.model, deployment.architecture, deployment.dtype,
                  deployment.quantization, deployment.device, deployment.processor, deployment.kernels):  # fmt: skip
        digest.update(f"{value}\0".encode())
    if rope_scaling is not None:
        digest.update(f"{rope_scaling}\0".encode())
    add_model(digest, model)
    return f"fp_{digest.hexdigest()[:10]}"


def add_model(digest: hashlib._Hash, model: Path) -> None:
    """Add a model's file, or the files of its folder, by their sizes and parts of them."""
    files = sorted(path for path in model.iterdir() if path.is_file()) if model.is_dir() else [model]
    for path in files:
        if path.suffix in (".json", ".safetensors", ".gguf", ".model", ".jinja"):
            _add_file(digest, path)


def _add_file(digest: hashlib._Hash, path: Path) -> None:
    size = path.stat().st_size
    digest.update(f"{path.name} {size}\0".encode())
    with path.open("rb") as file:
        if size <= _READ_WHOLE:
            digest.update(file.read())
            return
        for number in range(_SAMPLES):
            file.seek((size - _SAMPLE_BYTES) * number // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
