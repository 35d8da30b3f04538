"""An episode: a few requests from their first chunk to their last token, every iteration decided beforehand.

Profiles are made of episodes; core/policies/episode.py runs them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from longspan.core.costs.batch_shape import BatchShape
from longspan.core.costs.cost_model import Chunk, CostModel


@dataclass(frozen=True, slots=True)
class Iterate:
    """Run an iteration, `times` times over. Requests go by their place in the episode.

    chunks: (request, tokens), striped over the episode's instances. decodes: requests, dealt out over the first
        `masters` of these instances.
    """

    chunks: tuple[tuple[int, int], ...] = ()
    decodes: tuple[int, ...] = ()
    masters: int = 1
    times: int = 1


@dataclass(frozen=True, slots=True)
class Move:
    """Migrate all KV that a request has on one instance to another."""

    request: int
    source: int
    target: int


Step = Iterate | Move
Company = Literal["prefill", "decode"]
"""What a neighbour does, again and again."""


@dataclass(frozen=True, slots=True)
class Episode:
    """A few requests and the instances that run them, from prefill to last token.

    prompts: tokens of each request. instances: how many run it, the first ones; they keep the KV evenly.

    Every request is prefilled whole, and ends with the last iteration that it has a part in. Only where one instance
    runs it do requests move, and back again: KV is spread evenly whenever an iteration runs.

    beside: what the last instance, which has no part in it, does meanwhile with a request of its own, as long as all
        its prompts together; None: all other instances stand still.
    """

    prompts: tuple[int, ...]
    instances: int
    steps: tuple[Step, ...]
    beside: Company | None = None

    def output_tokens(self) -> tuple[int, ...]:
        """Return how many tokens each request generates: one after its prefill, one for each decode."""
        decodes: Counter[int] = Counter()
        for step in self.steps:
            if isinstance(step, Iterate):
                for request in step.decodes:
                    decodes[request] += step.times
        return tuple(1 + decodes[request] for request in range(len(self.prompts)))

    def work(self) -> Iterator[tuple[BatchShape | int, int]]:
        """Yield what each step amounts to, and how often it runs; a repeated one as it is in the middle."""
        stored = [0] * len(self.prompts)
        for step in self.steps:
            if isinstance(step, Move):
                yield stored[step.request], 1
                continue
            yield self._shape(step, stored), step.times
            for request, tokens in step.chunks:
                stored[request] += tokens
            for request in step.decodes:
                stored[request] += step.times

    def predict(self, model: CostModel) -> float:
        """Return the predicted seconds."""
        return sum(
            times * (work.predict(model) if isinstance(work, BatchShape) else model.migration(work))
            for work, times in self.work()
        )

    def _shape(self, step: Iterate, stored: Sequence[int]) -> BatchShape:
        context = sum(stored[request] for request in step.decodes)
        return BatchShape(
            num_instances=self.instances,
            chunks=tuple(Chunk(tokens, stored[request]) for request, tokens in step.chunks),
            num_requests=len(step.decodes),
            context_tokens=context + len(step.decodes) * (step.times // 2),
            num_masters=min(step.masters, len(step.decodes)),
        )


@dataclass(frozen=True, slots=True)
class Timed:
    """A step that ran. work: as in `Episode.work`: the batch, or how many tokens moved.

    seconds: from the decision, or the completion that it was queued behind, to its own completion, on the engine's
        clock; of a step that ran several times, the mean of all but the first.
    first_s: the same of the first, of a step that ran several times: it was queued behind nothing.
    """

    work: BatchShape | int
    seconds: float
    first_s: float | None = None
