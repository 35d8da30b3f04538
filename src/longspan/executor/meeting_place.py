"""A folder in which the workers of one engine find each other, gone at the latest when another engine starts.

An engine that is killed while it loads cannot remove its folder. So each is locked for as long as its engine lives:
one that can be locked belongs to none.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

_PREFIX = "longspan-meeting-"  # not that of versions that did not lock theirs


class MeetingPlace:
    """A folder, in memory where it can be: workers that exchange through memory map files of it."""

    def __init__(self, parent: Path | None = None) -> None:
        memory = Path(os.environ.get("LONGSPAN_SHM") or "/dev/shm")
        self.parent = parent or (memory if memory.is_dir() else Path(tempfile.gettempdir()))
        _remove_abandoned(self.parent)
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self.parent))
            self._lock = os.open(self.path, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            if self.path.is_dir():  # else another engine took it for abandoned before it was locked
                return
            os.close(self._lock)

    def close(self) -> None:
        """Remove it, with all that is in it; what is mapped stays so. May be called twice."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # somebody else's, locked, or gone meanwhile
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(lock).st_uid == os.geteuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
