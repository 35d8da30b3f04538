"""A process that measures how fast workers are, from its start to its end."""

from __future__ import annotations

import multiprocessing
import threading
from multiprocessing.context import SpawnProcess

from longspan.executor.launcher import WORKER_ENVIRONMENT, default_environment
from longspan.interrupts import interrupts_held_back
from longspan.tuning.probing import Probed, ProbeSettings
from longspan.worker import probe_process


class Probe:
    """One measurement. `close` ends it, from any thread."""

    def __init__(self, settings: ProbeSettings) -> None:
        self._settings = settings
        self._process: SpawnProcess | None = None
        self._closed = False
        self._spawning = threading.Lock()

    def run(self, timeout_s: float) -> Probed | str:
        """Return what was measured, or why nothing was. The process ends with the thread that calls this."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        with self._spawning:
            if self._closed:
                return "it was closed"
            # Ctrl-C is the engine's to handle.
            with interrupts_held_back(), default_environment(WORKER_ENVIRONMENT):
                process = context.Process(
                    target=probe_process.main, args=(self._settings, theirs), name="probe", daemon=True
                )
                process.start()
            self._process = process
        theirs.close()
        try:
            if not ours.poll(timeout_s):
                return f"it took more than {timeout_s:g} s"
            answer: Probed | str = ours.recv()
        except EOFError:
            return "its process ended unexpectedly"
        finally:
            ours.close()
            self.close()
        return answer

    def close(self) -> None:
        """End the process."""
        with self._spawning:
            self._closed = True
            if self._process is not None:
                self._process.kill()
                self._process.join()
