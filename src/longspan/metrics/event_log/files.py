"""Names of log files. Nothing that exists is ever opened for writing, but pipes and devices.

A run that is told FILE writes FILE, then FILE.2, FILE.3 ... if it rotates. Where any of these exists, it is FILE-2
(events.jsonl: events-2.jsonl), or the next number that is free.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

_PIECE = re.compile(r"(.+)\.([1-9][0-9]*)")


def create_log(path: Path) -> tuple[Path, int]:
    """Return a new file by that name, or the next free one, and its descriptor. A pipe or device is opened as it is.

    Raises OSError: among others, if the path is a pipe that nothing reads.
    """
    if is_special(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.set_blocking(descriptor, True)
        return path, descriptor
    if path.is_dir():
        raise IsADirectoryError(21, os.strerror(21), str(path))
    number = 1
    while True:
        name = _numbered(path, number)
        if not _is_taken(name):
            try:
                return name, create_piece(name)
            except FileExistsError:  # another server was quicker
                pass
        number += 1


def create_piece(path: Path) -> int:
    """Return the descriptor of a new file. Raises FileExistsError, OSError."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)


def piece_path(first: Path, number: int) -> Path:
    """Return the path of a run's piece, numbered from 1."""
    return first if number == 1 else first.with_name(f"{first.name}.{number}")


def first_piece_path(path: Path) -> tuple[Path, int]:
    """Return the run's first path, and the piece's number, if `path` is named like a later piece."""
    found = _PIECE.fullmatch(path.name)
    return (path, 1) if found is None else (path.with_name(found[1]), int(found[2]))


def existing_pieces(first: Path) -> dict[int, Path]:
    """Return the pieces that are there by number, in order, by their names alone."""
    found: dict[int, Path] = {}
    for name in _names_beside(first):
        base, number = first_piece_path(first.with_name(name))
        if name == first.name:
            found[1] = first
        elif base.name == first.name and number > 1:
            found[number] = first.with_name(name)
    return dict(sorted(found.items()))


def _numbered(path: Path, number: int) -> Path:
    if number == 1:
        return path
    packed = ".gz" if path.suffix == ".gz" else ""
    plain = path.name.removesuffix(packed)
    stem, suffix = os.path.splitext(plain)
    return path.with_name(f"{stem}-{number}{suffix}{packed}")


def _is_taken(path: Path) -> bool:
    return bool(existing_pieces(path))


def _names_beside(path: Path) -> list[str]:
    return os.listdir(path.absolute().parent)


def is_special(path: Path) -> bool:
    """Tell whether it is a pipe or a device, which has no pieces and loses nothing by being opened."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
