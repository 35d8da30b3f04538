"""Memory in which the workers of one engine find each other. No file system has a name for it, so nothing of it is left
once the last process that has mapped it is gone, however that came about."""

from __future__ import annotations

import os
import sys
from pathlib import Path


class MeetingPlace:
    """Memory without a size yet. path: where processes of the same user open it, until it is closed."""

    def __init__(self) -> None:
        self._memory = os.memfd_create("longspan-meeting") if sys.platform == "linux" else -1  # elsewhere nobody asks
        self.path = Path(f"/proc/{os.getpid()}/fd/{self._memory}")

    def close(self) -> None:
        """Let nobody open it any more; what is mapped stays so. May be called twice."""
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1
