"""What was measured and chosen once, kept in the cache: a file for each model, machine and version."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from longspan.cache import is_own, private_folder
from longspan.config import Objective
from longspan.errors import ConfigError
from longspan.files import write_whole
from longspan.tuning.shapes import Shape
from longspan.tuning.speed import WorkerSpeed

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A shape, and why."""

    shape: Shape
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """Of one model on one machine. speeds: of workers, by threads. chosen: by objective."""

    speeds: Sequence[WorkerSpeed]
    chosen: dict[Objective, Chosen] = field(default_factory=dict)


def recall(name: str) -> Known | None:
    """Return what is known under this name; None: nothing, or nothing that can be read or trusted."""
    try:
        path = _path(name)
        if not is_own(path):
            return None
        content = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        if content.pop("format_version", None) != FORMAT_VERSION:
            return None
        return msgspec.convert(content, Known)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, ConfigError):
        return None


def remember(name: str, known: Known) -> None:
    """Keep it; where that cannot be, the next start measures anew."""
    content = {"format_version": FORMAT_VERSION, "speeds": known.speeds, "chosen": known.chosen}
    try:
        write_whole(_path(name), msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")
    except OSError as error:
        logger.warning("what was measured cannot be kept, and is measured at each start: %s", error)


def _path(name: str) -> Path:
    return private_folder("shapes") / f"{name}.json"
