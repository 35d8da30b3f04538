"""Options of `longspan profile` that are those of `longspan serve`: fields of `EngineConfig`, each given or not."""

from __future__ import annotations

from dataclasses import fields, make_dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from cyclopts import Parameter

from longspan.config import EngineConfig

SETTINGS = (
    "revision", "instances", "tp", "pp", "dtype", "quantization", "device", "executor", "transport",
    "threads_per_device", "max_model_len", "rope_scaling", "kv_tokens",
)  # fmt: skip
"""What a profile depends on. (It runs no policy.)"""

if TYPE_CHECKING:
    ProfileSettings = Any
else:
    _TYPES = get_type_hints(EngineConfig)
    _HELP = Parameter(help="As for `longspan serve`.")
    ProfileSettings = make_dataclass(
        "ProfileSettings", [(name, Annotated[_TYPES[name] | None, _HELP], None) for name in SETTINGS], frozen=True,
        namespace={"__module__": __name__},
    )  # fmt: skip


def given(settings: ProfileSettings) -> dict[str, Any]:
    """Return the fields of `EngineConfig` that are given."""
    named = {field.name: getattr(settings, field.name) for field in fields(settings)}
    return {name: value for name, value in named.items() if value is not None}
