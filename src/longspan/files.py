"""Files: paths that users name are looked at before the work whose result they are for, and results appear whole."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from longspan.errors import ConfigError


def check_writable(path: Path | str) -> None:
    """Raises ConfigError: a file cannot be written there. What the file holds stays as it is."""
    path = Path(path)
    try:
        folder = path.absolute().parent
        if not folder.is_dir():
            raise ConfigError(f"{path} cannot be written: there is no folder {folder}")
        if path.is_dir():
            raise ConfigError(f"{path} cannot be written: it is a folder")
        if path.is_file() or not path.exists():  # a pipe or a terminal is not to be opened twice
            _try(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{_shown(path)} cannot be written: {_reason(error)}") from error


def check_folder_writable(path: Path | str) -> None:
    """Raises ConfigError: there is no such folder, and none can be made, or no file can be written in it.

    A folder that is missing is made.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        _try(path / ".longspan")
    except FileExistsError as error:
        raise ConfigError(f"{path} is a file, but must be a folder") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{_shown(path)} cannot be written: {_reason(error)}") from error


def check_readable(path: Path | str) -> None:
    """Raises ConfigError: there is no such file, or it cannot be read."""
    path = Path(path)
    try:
        if path.is_dir():
            raise ConfigError(f"{path} cannot be read: it is a folder")
        if path.is_file() or not path.exists():
            path.open("rb").close()
        elif not os.access(path, os.R_OK):  # a pipe is not opened: what comes out of it comes once
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{_shown(path)} cannot be read: {_reason(error)}") from error


def write_whole(path: Path, content: bytes) -> None:
    """Write it whole or not at all: who reads the file meanwhile, or after a crash, sees what was there before.

    A link stays, and what it leads to is written. A pipe or a device is written as it is. Raises OSError.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        path.write_bytes(content)  # no file may take its place
        return
    path = Path(os.path.realpath(path))
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise


def _try(path: Path) -> None:
    """Only a file that is made here is removed again: another program may make one by this name meanwhile."""
    try:
        path.open("xb").close()
    except FileExistsError:
        path.open("ab").close()
    else:
        path.unlink()


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _shown(path: Path) -> str:
    """Its name, on one line."""
    return str(path) if str(path).isprintable() else repr(str(path))
