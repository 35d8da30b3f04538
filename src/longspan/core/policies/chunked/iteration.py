"""The next batches, as they are being put together. Nothing is issued before all are complete."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from math import inf

from longspan.core.books.request import Request
from longspan.core.costs.load import Load
from longspan.core.decision import Decision
from longspan.core.policies.chunked.feedback import Kind
from longspan.core.policies.chunked.predictor import Predictor
from longspan.core.policies.parts.longest import longest
from longspan.core.policies.parts.pace import Gaps

Context = Sequence[tuple[int, int]]
"""(instance, tokens) for each holder of a request's KV."""
_NOBODY: Mapping[int, Gaps] = {}


@dataclass(frozen=True, slots=True)
class PlannedChunk:
    """A chunk of one request. team: the instances that compute it, one or several."""

    request: Request
    team: tuple[int, ...]
    length: int


@dataclass(slots=True, eq=False)
class Part:
    """Instances that run one batch together, because requests in it have KV on several of them.

    ring: the team of its chunks that several instances compute; empty without any. decodes: (request, master).
    num_counted: decodes beside these, which are not listed. tightest: the shortest gaps of all of these, and of those
    that it would follow; None without any. sparing_s: the seconds that are left it by a team that saves up.
    """

    loads: dict[int, Load]
    ring: tuple[int, ...] = ()
    decodes: list[tuple[Request, int]] = field(default_factory=list)
    num_counted: int = 0
    chunks: list[PlannedChunk] = field(default_factory=list)
    tightest: Gaps | None = None
    sparing_s: float = inf

    @property
    def instances(self) -> tuple[int, ...]:
        return tuple(sorted(self.loads))

    @property
    def kind(self) -> Kind:
        """What it will be, once a chunk is in it."""
        return "wide" if self.ring else "mixed" if self.decodes or self.num_counted else "prefill"

    @property
    def kind_now(self) -> Kind:
        return self.kind if self.chunks else "decode"

    def absorb(self, other: Part) -> None:
        self.loads |= other.loads
        self.ring = self.ring or other.ring
        self.decodes += other.decodes
        self.num_counted += other.num_counted
        self.chunks += other.chunks
        self.sparing_s = min(self.sparing_s, other.sparing_s)
        if other.tightest is not None:
            self.tighten(other.tightest)

    def tighten(self, gaps: Gaps) -> None:
        self.tightest = gaps if self.tightest is None else self.tightest.tightest(gaps)

    def busiest_s(self, others: Collection[int] = ()) -> float:
        """Return the seconds of the busiest of its instances but these."""
        if len(others) == len(self.loads):
            return 0.0
        return max([load.seconds() for number, load in self.loads.items() if number not in others])


class Iteration:
    """Instances that can take a batch now; each is a part of its own until a request joins it to more.

    Decodes come first, then chunks, each as large as the target of its part leaves it.
    """

    def __init__(
        self, predictor: Predictor, instances: Iterable[int], now: float = 0.0, running: Mapping[int, Gaps] = _NOBODY
    ) -> None:
        """Begin one. running: by instance, the tightest gaps of decodes that are in its later pipeline stages."""
        self.predictor = predictor
        self.now = now
        self.instances = frozenset(instances)
        self._running = running
        self._parts: dict[int, Part] = {}  # of instances that were asked about

    def __contains__(self, instance: int) -> bool:
        return instance in self.instances

    def covers(self, instances: Collection[int]) -> bool:
        return self.instances.issuperset(instances)

    def parts(self) -> list[Part]:
        """Return the parts that have something to run, by their first instance."""
        parts = dict.fromkeys([p for p in self._parts.values() if p.decodes or p.chunks or p.num_counted])
        return sorted(parts, key=lambda part: part.instances) if len(parts) > 1 else list(parts)

    def explained(self, instances: tuple[int, ...], chunks: Mapping[str, int]) -> Decision:
        """Return what the event log says of these instances' part. chunks: their tokens, by request."""
        predicted = {"batch_s": self.seconds(instances), "target_s": self.target(instances)}
        for request_id, tokens in chunks.items():
            predicted[f"tokens of {request_id}"] = tokens
        return Decision("iterate", tuple(chunks), instances, predicted)

    def seconds(self, instances: Iterable[int]) -> float:
        """Return the predicted seconds of the parts of these instances as they are now."""
        part = self._joined(instances)
        return part.busiest_s() + self._between(part)

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
        exchange_s = self._between(part)
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
        return busiest_s + self._between(part)

    def can_be_joined(self, team: tuple[int, ...]) -> bool:
        """Tell whether a chunk of the team fits in: chunks of another team do not pass the same ring."""
        return self._joined(team).ring in ((), team)

    def largest_wide_chunk(self, team: tuple[int, ...], context: int, most: int, limit: float) -> int:
        """Return the longest chunk that a team can compute together, as `largest_chunk` does for one instance.

        context: tokens before it, which the team holds. 0 if the team's part has chunks of another team.
        """
        part = self._joined(team)
        if not self.can_be_joined(team):
            return 0
        limit = min(self._target(part, "wide"), limit)
        between_s = self._between(part, len(team))
        if part.busiest_s(others=team) + between_s > limit:
            return 0
        loads, work = [part.loads[number] for number in team], self.predictor.model.work

        def seconds(length: int) -> float:
            share_s = work(length, context, len(team))
            return max([load.seconds_with_share(share_s) for load in loads]) + between_s

        return longest(most, seconds, limit)

    def saves_up(self, team: tuple[int, ...]) -> bool:
        """Tell whether the team shall wait with its chunk until the decodes there are ahead of their pace; then what
        else fills this iteration leaves it short."""
        part = self._joined(team)
        if part.ring or not part.decodes or part.tightest is None:
            return False
        pace_s, limit, scale = part.tightest.pace_s, self._target(part, "wide"), self._scale(part, "wide")
        if not self.predictor.saves_up(len(team), limit, pace_s, scale):
            return False
        without_s = part.busiest_s()
        if not self.predictor.gets_ahead(without_s, without_s * self._scale(part, part.kind_now), pace_s):
            return False
        for number in team:
            self._part(number).sparing_s = self.predictor.sparing(pace_s)
        return True

    def add_wide_chunk(self, request: Request, team: tuple[int, ...], context: int, length: int) -> None:
        part = self._join(team)
        share_s = self.predictor.model.work(length, context, len(team))
        for number in team:
            part.loads[number].add_share(-(-length // len(team)), share_s)
        part.ring = team
        part.chunks.append(PlannedChunk(request, team, length))

    def add_chunk(self, request: Request, instance: int, context: Context, length: int) -> None:
        held = dict(context)
        part = self._join({instance, *held})
        part.loads[instance].add_chunk(length, held.pop(instance, 0))
        for holder, tokens in held.items():
            part.loads[holder].add_answers(length, tokens)
        part.chunks.append(PlannedChunk(request, (instance,), length))

    def add_decodes(
        self, decodes: Iterable[tuple[Request, int]], holders: Mapping[str, tuple[int, ...]],
        context: Callable[[str], Context],
    ) -> None:  # fmt: skip
        """Add requests that decode, each with its master. holders, context: by id; the latter of who has several."""
        parts, alike = self._parts, dict[tuple[int, tuple[int, ...]], list[Request]]()
        for request, master in decodes:
            each = holders[request.id]
            many = alike.get((master, each))
            if many is None:
                many = alike[master, each] = []
                if master not in parts or not parts[master].loads.keys() >= set(each):
                    self._join({master, *each})
            many.append(request)
            parts[master].decodes.append((request, master))
        for (master, each), many in alike.items():
            part, held = parts[master], dict.fromkeys((master, *each), 0)
            if len(each) == 1:
                held[each[0]] = sum([request.num_computed for request in many])
            else:
                for holder, tokens in chain.from_iterable([context(request.id) for request in many]):
                    held[holder] += tokens
            part.loads[master].add_decodes(len(many), held.pop(master))
            for holder, tokens in held.items():
                part.loads[holder].add_answered(tokens)
        for part in dict.fromkeys([parts[master] for master, _ in alike]):
            for tpot_s, left_s in self.predictor.least_left([one for one, _ in part.decodes], self.now).items():
                part.tighten(self.predictor.pace.gaps(tpot_s, left_s))

    def add_counted_decodes(self, instance: int, many: int, context: int, gaps: Gaps) -> None:
        """Add many decodes of one instance at once, whose KV is all there.

        context: tokens, of all together. gaps: the tightest of these (`Pace.tightest`).
        """
        part = self._join({instance})
        part.loads[instance].add_decodes(many, context)
        part.num_counted += many
        part.tighten(gaps)

    def _between(self, part: Part, ring: int = 0) -> float:
        """Seconds for what passes between the part's instances. ring: of a chunk that is to come, its instances."""
        return max(self.predictor.exchange(len(part.loads)), self.predictor.ring(max(ring, len(part.ring))))

    def _target(self, part: Part, kind: Kind | None = None) -> float:
        """In seconds as predictions go: what they get wrong is taken out here."""
        scale, gaps, between_s = self._scale(part, kind or part.kind), part.tightest, self._between(part)
        if gaps is None:
            return min(self.predictor.target(None, scale), part.sparing_s / scale)
        gap_s = gaps.team_s if kind == "wide" or part.ring else gaps.chunk_s
        target_s = min(self.predictor.target(gap_s, scale), part.sparing_s / scale)
        if part.busiest_s() + between_s <= target_s:  # as nearly always
            return target_s
        decodes_s = max([load.decode_seconds() for load in part.loads.values()]) + between_s
        return max(target_s, self.predictor.least_beside(decodes_s, gaps.pace_s, scale))

    def _scale(self, part: Part, kind: Kind) -> float:
        """Actual over predicted."""
        return self.predictor.feedback.scale(kind, part.loads)

    def _part(self, instance: int) -> Part:
        part = self._parts.get(instance)
        if part is None:
            load = Load(self.predictor.model)
            part = self._parts[instance] = Part({instance: load}, tightest=self._running.get(instance))
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
