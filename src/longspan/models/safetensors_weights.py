"""Weights from a folder of safetensors files: one, or several with an index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from longspan.errors import ModelError, UnsupportedModelError
from longspan.models.fields import read_json

_SERVED = ("F16", "BF16", "F32", "F64")
"""How safetensors calls the types of weights that are numbers by themselves: no scales, no codes."""


class SafetensorsWeights:
    """Files are mapped into memory when first needed; a slice touches only its own pages.

    An index names files of its own folder only. (They may be links, as in the cache of Hugging Face's hub.)
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, Any] = {}
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            self._file_of = _read_index(index)
        elif (folder / "model.safetensors").is_file():
            self._file_of = dict.fromkeys(self._open("model.safetensors").keys(), "model.safetensors")
        else:
            raise ModelError(
                f"{folder} has neither model.safetensors nor model.safetensors.index.json; "
                "other formats (.bin, .pth) must be converted, e.g. by transformers' "
                "save_pretrained"
            )

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._find(name).get_shape())

    def read(self, name: str, rows: slice | None = None, columns: slice | None = None) -> Tensor:
        stored, whole = self._find(name), slice(None)
        part: Tensor = stored[rows or whole] if columns is None else stored[rows or whole, columns]
        return part

    def _find(self, name: str) -> Any:
        """What parts of the tensor can be read from."""
        if name not in self._file_of:
            raise ModelError(f"{self.folder}: tensor {name} is missing")
        path = self.folder / self._file_of[name]
        try:
            stored = self._open(self._file_of[name]).get_slice(name)
        except SafetensorError as error:
            raise ModelError(f"{path}: tensor {name} is missing") from error
        if stored.get_dtype() not in _SERVED:
            raise UnsupportedModelError(
                f"{path}: tensor {name} is stored as {stored.get_dtype()}, but weights of {', '.join(_SERVED)} run; if "
                "a tool has quantised them, use what it was made from"
            )
        return stored

    def _open(self, file: str) -> Any:
        if file not in self._files:
            try:
                self._files[file] = safe_open(self.folder / file, framework="pt")
            except (OSError, SafetensorError) as error:
                raise ModelError(
                    f"{self.folder / file} cannot be read ({error}); if a download was cut "
                    "short, fetch it again"
                ) from error
        return self._files[file]


def _read_index(index: Path) -> dict[str, str]:
    """The file of each tensor."""
    fields = read_json(index)
    files = fields.table("weight_map").values
    if not files:
        raise fields.wrong("weight_map", "the file of each tensor")
    for name, file in files.items():
        if not isinstance(file, str) or file in ("", ".", "..") or Path(file).name != file or "\0" in file:
            raise ModelError(
                f"{index} has tensor {name} in {file!r}, which is no file of this folder; fetch the index again, from "
                "somebody you trust"
            )
    return dict(files)
