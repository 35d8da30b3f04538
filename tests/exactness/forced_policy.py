"""A policy that decides at random what a cell leaves open, and forces what it names."""

from __future__ import annotations

from typing import Literal

from longspan.core.news import News
from longspan.core.state import SchedulerState
from tests.core.random_policy import RandomPolicy

Retention = Literal["one", "even", "shards", "random"]


class ForcedPolicy(RandomPolicy):
    """Mixed batches, rings, masters and stripes at random; it refuses nobody.

    chunk: tokens of a chunk; None: any number.
    retention: who keeps a chunk's KV: one instance, all alike, each the next `shard` tokens in turn, or anybody.
    migrates, preempts: at nearly every chance, or never.
    pieces: chunks of several instances are cut into contiguous pieces, in any order, not striped.
    """

    name = "forced"

    def __init__(
        self, seed: int, *, chunk: int | None, retention: Retention, shard: int, migrates: bool, preempts: bool,
        pieces: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(seed)
        self.chunk, self.retention, self.shard = chunk, retention, shard
        self.migrates, self.preempts, self.pieces = migrates, preempts, pieces
        self._moved_before = 0

    def schedule(self, state: SchedulerState, news: News, now: float) -> None:
        if state.num_batches > self._moved_before:  # never for moves alone: nobody would get on
            self._moved_before = state.num_batches
            if self.migrates:
                self._migrate(state)
                self._copy(state)
            if self.preempts:
                self._preempt(state)
        for _ in range(self.rng.randrange(1, 4)):
            self._batch(state)
        if not any(instance.is_working for instance in state.cluster.instances):
            self._make_progress(state)

    def _chunk(self, left: int) -> int:
        return super()._chunk(left) if self.chunk is None else min(left, self.chunk)

    def _lay_out(self, start: int, length: int, compute: list[int]) -> tuple[list[int], list[int]]:
        if not self.pieces or len(compute) == 1 or length < len(compute):
            return sorted(compute) if self.pieces else compute, []  # a ring with pieces is in that order
        several = self.rng.choices(compute, k=self.rng.randint(0, min(3, length - len(compute))))
        owners = self.rng.sample([*compute, *several], len(compute) + len(several))
        return owners, sorted(self.rng.sample(range(start + 1, start + length), len(owners) - 1))

    def _keep(self, start: int, length: int, compute: list[int], free: dict[int, int]) -> list[tuple[int, int]]:
        match self.retention:
            case "random":
                return super()._keep(start, length, compute, free)
            case "even":
                shares = [(number, -(-length // len(compute))) for number in compute]
            case "one":
                shares = [(number, length) for number in sorted(compute)]
            case "shards":
                first = [start, *range(start - start % self.shard + self.shard, start + length, self.shard)]
                shares = [(compute[i // self.shard % len(compute)], self.shard - i % self.shard) for i in first]
        kept: list[tuple[int, int]] = []
        room = dict(free)
        for number, share in [*shares, *((number, length) for number in compute)]:
            share = min(share, length, room[number])
            if share > 0:
                kept.append((number, share))
                room[number] -= share
                length -= share
        return kept

