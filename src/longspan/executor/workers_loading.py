"""How far all workers together are with loading, out of what each says of itself."""

from __future__ import annotations

from longspan.phases import OnPhase, Phase
from longspan.worker.messages import Loading


class WorkersLoading:
    """Begins with the start of the workers, each of which tells the same steps in the same order."""

    def __init__(self, num_workers: int, on_phase: OnPhase) -> None:
        self._on_phase = on_phase
        self._num_workers = num_workers
        self._workers = f"{num_workers} workers" if num_workers > 1 else "1 worker"
        self._last: dict[int, Loading] = {}
        on_phase(Phase(f"starting {self._workers}"))

    def take(self, rank: int, loading: Loading) -> None:
        """Take the phase of the slowest: while one compiles, the rest wait for it."""
        self._last[rank] = loading
        if any(one.step == "kernels" for one in self._last.values()):
            self._on_phase(Phase("compiling kernels, once for this machine"))
            return
        done, total = (sum(getattr(one, name) for one in self._last.values()) for name in ("done", "total"))
        # Those that have not begun have about as much to read as those that have.
        total = total * self._num_workers // len(self._last)
        self._on_phase(Phase(f"loading weights on {self._workers}", done, total))
