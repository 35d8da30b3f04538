"""Where Longspan keeps what it can make anew."""

from __future__ import annotations

import os
import shutil
import stat
import time
from pathlib import Path

_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
_LEFT_AFTER_S = 24 * 3600.0


def cache_dir() -> Path:
    """Return $LONGSPAN_CACHE, else $XDG_CACHE_HOME/longspan, else ~/.cache/longspan. May not exist yet."""
    if own := os.environ.get("LONGSPAN_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared).expanduser() if shared else Path.home() / ".cache") / "longspan"


def private_folder(name: str) -> Path:
    """Return the cache's folder of that name, made if need be: it is loaded from, so no other user may write there.

    Raises OSError (PermissionError) where it cannot be made, or belongs to another user than this one and root.
    """
    folder = cache_dir() / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    for place in (folder.parent, folder):
        status = place.stat()
        if status.st_uid not in (os.geteuid(), 0):
            raise PermissionError(f"{place} belongs to another user, who could put anything there")
        if status.st_mode & _OTHERS_MAY_WRITE:
            place.chmod(stat.S_IMODE(status.st_mode) & ~_OTHERS_MAY_WRITE)
    return folder


def is_own(path: Path) -> bool:
    """Tell whether there is such a file or folder, which only this user and root can have written."""
    try:
        link, status = path.lstat(), path.stat()
    except OSError:
        return False
    owners = {link.st_uid, status.st_uid}
    return owners <= {os.geteuid(), 0} and not status.st_mode & _OTHERS_MAY_WRITE


def remove_leftovers(folder: Path, prefix: str) -> None:
    """Remove temporary folders of that prefix that a killed process left: those older than any work takes."""
    for left in folder.glob(f"{prefix}*"):
        if left.is_dir() and time.time() - left.lstat().st_mtime > _LEFT_AFTER_S:
            shutil.rmtree(left, ignore_errors=True)
