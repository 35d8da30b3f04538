"""Weights from a folder of safetensors files: one, or several with an index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from longspan.errors import ModelError


class SafetensorsWeights:
    """Files are mapped into memory when first needed; a slice touches only its own pages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, Any] = {}
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            try:
                self._file_of: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            except (OSError, ValueError, KeyError) as error:
                raise ModelError(f"{index} cannot be read: {error!r}") from error
        elif (folder / "model.safetensors").is_file():
            self._file_of = dict.fromkeys(self._open("model.safetensors").keys(), "model.safetensors")
        else:
            raise ModelError(
                f"{folder} has neither model.safetensors nor model.safetensors.index.json; "
                "other formats (.bin, .pth) must be converted, e.g. by transformers' "
                "save_pretrained"
            )

    def read(self, name: str, rows: slice | None = None, columns: slice | None = None) -> Tensor:
        if name not in self._file_of:
            raise ModelError(f"{self.folder}: tensor {name} is missing")
        try:
            stored = self._open(self._file_of[name]).get_slice(name)
        except SafetensorError as error:
            raise ModelError(f"{self.folder / self._file_of[name]}: tensor {name} is missing") from error
        whole = slice(None)
        part: Tensor = stored[rows or whole] if columns is None else stored[rows or whole, columns]
        return part

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
