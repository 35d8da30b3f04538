"""A process beside the server's, and what it logs."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Mapping, Sequence


class LoggedProcess:
    """lines: what it has written so far, errors included. environment: beside this process' own."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(iter(self.process.stdout.readline, ""))

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
