"""What the instances did with their time and their KV slots."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import mul
from typing import Literal

from longspan.core.actions import MigrateKV, RunBatch

WorkKind = Literal["prefill", "decode", "mixed", "migration"]
MOST_SAMPLES = 4096


@dataclass(slots=True)
class Span:
    """A group at work on iterations of one kind, pauses shorter than an iteration included. Seconds."""

    begin_s: float
    end_s: float
    group: tuple[int, ...]
    kind: WorkKind


class Usage:
    """Grows with what happens, not with how long.

    busy_s: of each instance. group_s: seconds of each kind of work, by the number of instances it ran on.
    spans: in order of their beginnings. sample_times_s, samples: KV slots taken on each instance, at moments about
        equally far apart; MOST_SAMPLES at most.
    """

    def __init__(self, num_instances: int) -> None:
        self.busy_s = [0.0] * num_instances
        self.group_s: defaultdict[tuple[WorkKind, int], float] = defaultdict(float)
        self.spans: list[Span] = []
        self.sample_times_s: list[float] = []
        self.samples: list[array[int]] = []
        self._latest: dict[tuple[int, ...], Span] = {}
        self.next_sample_s = 0.0
        self._apart_s = 1e-3

    def work(self, action: RunBatch | MigrateKV, begin_s: float, end_s: float, busy_s: float) -> None:
        """Note work. busy_s: of each of its devices; less than from begin to end where these are pipeline stages."""
        group = action.group if isinstance(action, RunBatch) else (action.source, action.target)
        kind = kind_of(action)
        for instance in group:
            self.busy_s[instance] += busy_s
        self.group_s[kind, len(group)] += busy_s
        latest = self._latest.get(group)
        if latest is not None and latest.kind == kind and begin_s - latest.end_s <= end_s - begin_s:
            latest.end_s = end_s
        else:
            self._latest[group] = span = Span(begin_s, end_s, group, kind)
            self.spans.append(span)

    def kv(self, now: float, used: Sequence[int]) -> None:
        """Note that so many slots are taken. Worth calling from `next_sample_s` on."""
        self.sample_times_s.append(now)
        self.samples.append(array("q", used))
        if len(self.samples) > MOST_SAMPLES:
            self.sample_times_s, self.samples = self.sample_times_s[::2], self.samples[::2]
            self._apart_s = 2 * max(self._apart_s, (now - self.sample_times_s[0]) / MOST_SAMPLES)
        self.next_sample_s = now + self._apart_s

    def mean_kv(self) -> list[float]:
        """Return KV slots taken on each instance, averaged over time."""
        lasting_s = [end - begin for begin, end in pairwise(self.sample_times_s)]
        total_s = sum(lasting_s)
        if not total_s:
            return [0.0] * len(self.busy_s)
        by_instance = zip(*self.samples[:-1], strict=True)
        return [sum(map(mul, used, lasting_s)) / total_s for used in by_instance]


def kind_of(action: RunBatch | MigrateKV) -> WorkKind:
    """Return the kind as in `BatchShape`: a single token behind a context is a decode."""
    if isinstance(action, MigrateKV):
        return "migration"
    first = action.segments[0]
    decodes = first.length == 1 and first.start > 0
    for segment in action.segments:
        if (segment.length == 1 and segment.start > 0) != decodes:
            return "mixed"
    return "decode" if decodes else "prefill"
