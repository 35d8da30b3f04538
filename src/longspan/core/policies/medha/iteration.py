"""The next batches, as they are being put together. Nothing is issued before all are complete."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from longspan.core.cost_model import Chunk
from longspan.core.load import Load, exchange_seconds
from longspan.core.policies.medha.predictor import Predictor
from longspan.core.request import Request

Context = Sequence[tuple[int, int]]
"""(instance, tokens) for each holder of a request's KV."""


@dataclass(frozen=True, slots=True)
class PlannedChunk:
    request: Request
    instance: int
    length: int


@dataclass(slots=True, eq=False)
class Part:
    """Instances that run one batch together, because requests in it have KV on several of them.

    decodes: (request, master).
    """

    loads: dict[int, Load]
    decodes: list[tuple[Request, int]] = field(default_factory=list)
    chunks: list[PlannedChunk] = field(default_factory=list)

    @property
    def instances(self) -> tuple[int, ...]:
        return tuple(sorted(self.loads))

    def absorb(self, other: Part) -> None:
        self.loads |= other.loads
        self.decodes += other.decodes
        self.chunks += other.chunks


class Iteration:
    """Instances that can take a batch now; each is a part of its own until a request joins it to others.

    Decodes come first, then chunks, each as large as the target of its part leaves it.
    """

    def __init__(self, predictor: Predictor, instances: Iterable[int]) -> None:
        self.predictor = predictor
        self._parts = {number: Part({number: Load()}) for number in instances}

    def __contains__(self, instance: int) -> bool:
        return instance in self._parts

    @property
    def instances(self) -> Collection[int]:
        return self._parts.keys()

    def covers(self, instances: Collection[int]) -> bool:
        return all(number in self._parts for number in instances)

    def parts(self) -> list[Part]:
        """Those that have something to run, by their first instance."""
        parts = {part.instances: part for part in self._parts.values() if part.decodes or part.chunks}
        return [parts[instances] for instances in sorted(parts)]

    def seconds(self, instances: Iterable[int]) -> float:
        """Predicted, of the parts of these instances as they are now."""
        return self._seconds(self._joined(instances))

    def target(self, instances: Iterable[int]) -> float:
        """Seconds that these instances' parts should take together."""
        return self.predictor.target([request for request, _ in self._joined(instances).decodes])

    def tokens(self, instance: int) -> int:
        """Of chunks that it computes."""
        return sum(chunk.length for chunk in self._parts[instance].chunks if chunk.instance == instance)

    def largest_chunk(self, instance: int, context: Context, most: int, limit: float) -> int:
        """The longest chunk computed by `instance` with which its part takes no more than target and limit, seconds.

        It holds for tokens up to `most`; 0 if not a single one fits. Found by bisection: more tokens never take less.
        """
        span = {instance, *(holder for holder, _ in context)}
        part = self._joined(span)
        target = self.predictor.target([request for request, _ in part.decodes])
        others = Part({number: load for number, load in part.loads.items() if number not in span})
        fixed = exchange_seconds(self.predictor.model, len(part.loads))
        least = self._busiest(others)

        def seconds(length: int) -> float:
            loads = _with_chunk({number: part.loads[number] for number in span}, instance, context, length)
            return max(least, self._busiest(Part(loads))) + fixed

        return bisect_right(range(1, most + 1), min(target, limit), key=seconds)

    def seconds_with(self, instance: int, context: Context, length: int) -> float:
        part = self._joined({instance, *(holder for holder, _ in context)})
        return self._seconds(Part(_with_chunk(part.loads, instance, context, length)))

    def add_chunk(self, request: Request, instance: int, context: Context, length: int) -> None:
        part = self._join({instance, *(holder for holder, _ in context)})
        part.loads = _with_chunk(part.loads, instance, context, length)
        part.chunks.append(PlannedChunk(request, instance, length))

    def add_decode(self, request: Request, master: int, context: Context) -> None:
        part = self._join({master, *(holder for holder, _ in context)})
        held = dict(context)
        part.loads[master] = part.loads[master].with_decode(held.pop(master, 0))
        for holder, tokens in held.items():
            part.loads[holder] = part.loads[holder].with_answered(tokens)
        part.decodes.append((request, master))

    def _seconds(self, part: Part) -> float:
        return self._busiest(part) + exchange_seconds(self.predictor.model, len(part.loads))

    def _busiest(self, part: Part) -> float:
        return max((load.seconds(self.predictor.model) for load in part.loads.values()), default=0.0)

    def _joined(self, instances: Iterable[int]) -> Part:
        """What the parts of these instances would be as one."""
        joined = Part({})
        for part in {id(part): part for part in (self._parts[number] for number in instances)}.values():
            joined.absorb(part)
        return joined

    def _join(self, instances: Iterable[int]) -> Part:
        joined = self._joined(sorted(instances))
        for number in joined.loads:
            self._parts[number] = joined
        return joined


def _with_chunk(loads: dict[int, Load], instance: int, context: Context, length: int) -> dict[int, Load]:
    held = dict(context)
    new = dict(loads)
    new[instance] = new[instance].with_chunk(Chunk(length, held.pop(instance, 0)))
    for holder, tokens in held.items():
        new[holder] = new[holder].with_answers(Chunk(length, tokens))
    return new
