"""The next batches, as they are being put together. Nothing is issued before all are complete."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from longspan.core.books.request import Request
from longspan.core.costs.load import Load
from longspan.core.policies.chunked.feedback import Kind
from longspan.core.policies.chunked.predictor import Predictor, longest

Context = Sequence[tuple[int, int]]
"""(instance, tokens) for each holder of a request's KV."""
_NOBODY: Mapping[int, float] = {}


@dataclass(frozen=True, slots=True)
class PlannedChunk:
    request: Request
    instance: int
    length: int


@dataclass(slots=True, eq=False)
class Part:
    """Instances that run one batch together, because requests in it have KV on several of them.

    decodes: (request, master). tightest_tpot_s: of these and of those that it would follow, seconds; None without any.
    """

    loads: dict[int, Load]
    decodes: list[tuple[Request, int]] = field(default_factory=list)
    chunks: list[PlannedChunk] = field(default_factory=list)
    tightest_tpot_s: float | None = None

    @property
    def instances(self) -> tuple[int, ...]:
        return tuple(sorted(self.loads))

    @property
    def kind(self) -> Kind:
        """What it will be, once a chunk is in it."""
        return "mixed" if self.decodes else "prefill"

    def absorb(self, other: Part) -> None:
        self.loads |= other.loads
        self.decodes += other.decodes
        self.chunks += other.chunks
        if other.tightest_tpot_s is not None:
            self.tighten(other.tightest_tpot_s)

    def tighten(self, tpot_s: float) -> None:
        self.tightest_tpot_s = tpot_s if self.tightest_tpot_s is None else min(self.tightest_tpot_s, tpot_s)

    def busiest_s(self, others: Collection[int] = ()) -> float:
        """Return the seconds of the busiest of its instances but these."""
        if len(others) == len(self.loads):
            return 0.0
        return max([load.seconds() for number, load in self.loads.items() if number not in others])


class Iteration:
    """Instances that can take a batch now; each is a part of its own until a request joins it to more.

    Decodes come first, then chunks, each as large as the target of its part leaves it.
    """

    def __init__(self, predictor: Predictor, instances: Iterable[int], running: Mapping[int, float] = _NOBODY) -> None:
        """Begin one. running: by instance, the tightest TPOT of decodes that are in its later pipeline stages."""
        self.predictor = predictor
        self.instances = frozenset(instances)
        self._running = running
        self._parts: dict[int, Part] = {}  # of instances that were asked about

    def __contains__(self, instance: int) -> bool:
        return instance in self.instances

    def covers(self, instances: Collection[int]) -> bool:
        return self.instances.issuperset(instances)

    def parts(self) -> list[Part]:
        """Return the parts that have something to run, by their first instance."""
        parts = dict.fromkeys([part for part in self._parts.values() if part.decodes or part.chunks])
        return sorted(parts, key=lambda part: part.instances) if len(parts) > 1 else list(parts)

    def seconds(self, instances: Iterable[int]) -> float:
        """Return the predicted seconds of the parts of these instances as they are now."""
        part = self._joined(instances)
        return part.busiest_s() + self.predictor.exchange(len(part.loads))

    def target(self, instances: Iterable[int]) -> float:
        """Return the seconds that these instances' parts should take together."""
        return self._target(self._joined(instances))

    def tokens(self, instance: int) -> int:
        """Return the tokens of chunks that the instance computes."""
        return self._part(instance).loads[instance].tokens

    def largest_chunk(self, instance: int, context: Context, most: int, limit: float) -> int:
        """Return the longest chunk of `instance` with which its part takes no more than target and limit, seconds.

        It holds for tokens up to `most`; 0 if not a single one fits. More tokens never take less, so what fits on one
        holder after another fits on all.
        """
        held = dict(context)
        part = self._joined({instance, *held})
        limit = min(self._target(part), limit)
        exchange_s = self.predictor.exchange(len(part.loads))
        if part.busiest_s(others={instance, *held}) + exchange_s > limit:
            return 0
        here, load = held.pop(instance, 0), part.loads[instance]
        length = longest(most, lambda length: load.seconds_with_chunk(length, here) + exchange_s, limit)
        for holder, tokens in held.items():
            length = _longest_answered(part.loads[holder], tokens, exchange_s, length, limit)
        return length

    def seconds_with(self, instance: int, context: Context, length: int) -> float:
        held = dict(context)
        part = self._joined({instance, *held})
        busiest_s = part.busiest_s(others={instance, *held})
        busiest_s = max(busiest_s, part.loads[instance].seconds_with_chunk(length, held.pop(instance, 0)))
        for holder, tokens in held.items():
            busiest_s = max(busiest_s, part.loads[holder].seconds_with_answers(length, tokens))
        return busiest_s + self.predictor.exchange(len(part.loads))

    def add_chunk(self, request: Request, instance: int, context: Context, length: int) -> None:
        held = dict(context)
        part = self._join({instance, *held})
        part.loads[instance].add_chunk(length, held.pop(instance, 0))
        for holder, tokens in held.items():
            part.loads[holder].add_answers(length, tokens)
        part.chunks.append(PlannedChunk(request, instance, length))

    def add_decode(self, request: Request, master: int, context: Context) -> None:
        held = dict(context)
        part = self._join({master, *held})
        part.loads[master].add_decode(held.pop(master, 0))
        for holder, tokens in held.items():
            part.loads[holder].add_answered(tokens)
        part.decodes.append((request, master))
        part.tighten(self.predictor.tpot(request))

    def _target(self, part: Part) -> float:
        """In seconds as predictions go: what they get wrong is taken out here."""
        return self.predictor.target(part.tightest_tpot_s) / self.predictor.feedback.scale(part.kind, part.loads)

    def _part(self, instance: int) -> Part:
        part = self._parts.get(instance)
        if part is None:
            load = Load(self.predictor.model)
            part = self._parts[instance] = Part({instance: load}, tightest_tpot_s=self._running.get(instance))
        return part

    def _joined(self, instances: Iterable[int]) -> Part:
        """What the parts of these instances would be as one."""
        first, *others = dict.fromkeys(map(self._part, instances))
        if not others:
            return first
        joined = Part({})
        for part in (first, *others):
            joined.absorb(part)
        return joined

    def _join(self, instances: Iterable[int]) -> Part:
        joined = self._joined(sorted(instances))
        for number in joined.loads:
            self._parts[number] = joined
        return joined


def _longest_answered(load: Load, context: int, exchange_s: float, most: int, limit: float) -> int:
    """The longest chunk up to `most` whose queries a holder of so much of its context can answer in time."""
    return longest(most, lambda length: load.seconds_with_answers(length, context) + exchange_s, limit)
