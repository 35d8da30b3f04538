"""How the cores of a machine can be cut up into workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_MOST_WORKERS = 8


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """instances, each of so many pipeline stages (`pp`), each of so many CPU threads."""

    instances: int
    pp: int
    threads: int

    @property
    def workers(self) -> int:
        return self.instances * self.pp

    def __str__(self) -> str:
        parts = [f"{self.instances} instance{'s' * (self.instances > 1)}"]
        if self.pp > 1:
            parts.append(f"{self.pp} stages")
        return f"{' of '.join(parts)} of {self.threads} thread{'s' * (self.threads > 1)}"


def worker_counts(cores: int) -> list[int]:
    """Return into how many workers the cores may be cut: evenly, and not into very many."""
    return [count for count in range(1, min(cores, _MOST_WORKERS) + 1) if cores % count == 0]


def possible_shapes(cores: int, num_layers: int, copies_that_fit: int) -> Sequence[Shape]:
    """Return the ways to have every core in one worker, one instance of all threads first.

    copies_that_fit: of the weights, in memory; at least 1.
    """
    return [
        Shape(workers // pp, pp, cores // workers)
        for workers in worker_counts(cores)
        for pp in range(workers, 0, -1)
        if workers % pp == 0 and pp <= num_layers and workers // pp <= max(1, copies_that_fit)
    ]
