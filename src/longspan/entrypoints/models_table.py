"""`longspan models`."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from longspan.models.catalog import list_models
from longspan.models.registry import MODELS

PIPE_WIDTH = 200  # no path is cut where a program reads it


def print_models() -> None:
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    table = Table("name", "size", "licence", "source", box=None, pad_edge=False)
    table.add_column("here", overflow="fold")
    for model in list_models():
        size = "" if model.size_bytes is None else f"{model.size_bytes / 1e6:,.0f} MB"
        table.add_row(
            model.name, size, model.licence, model.source, str(model.path) if model.cached else "no"
        )
    console.print(table)
    console.print(
        "\nA folder, a .gguf file, or an id of Hugging Face's hub (owner/name) with one of these architectures runs "
        "too: " + ", ".join(MODELS)
    )
