"""What one instance does in an iteration, and how long that takes.

Where instances compute segments of their own and answer each other's queries, as in KV-cache parallelism, an iteration
takes as long as its busiest instance, and one exchange. (Where all stripe the same segments, see `BatchShape`.)
"""

from __future__ import annotations

from typing import NamedTuple

from longspan.core.actions import RunBatch, Segment
from longspan.core.batch_shape import BatchShape
from longspan.core.cost_model import Chunk, CostModel


class Load(NamedTuple):
    """One instance's part.

    chunks: computed here, each with as much of its context as is here.
    num_decodes, decode_context: requests that decode here, and what of their contexts is here.
    answers: queries of chunks computed elsewhere, with as much of their context as is here.
    answered_context: context of requests that decode elsewhere.
    """

    chunks: tuple[Chunk, ...] = ()
    num_decodes: int = 0
    decode_context: int = 0
    answers: tuple[Chunk, ...] = ()
    answered_context: int = 0

    def with_chunk(self, chunk: Chunk) -> Load:
        return self._replace(chunks=(*self.chunks, chunk))

    def with_answers(self, chunk: Chunk) -> Load:
        return self._replace(answers=(*self.answers, chunk))

    def with_decode(self, context: int) -> Load:
        return self._replace(num_decodes=self.num_decodes + 1, decode_context=self.decode_context + context)

    def with_answered(self, context: int) -> Load:
        return self._replace(answered_context=self.answered_context + context)

    def seconds(self, model: CostModel) -> float:
        seconds = 0.0
        if self.chunks or self.num_decodes:
            seconds = model.mixed(self.chunks, self.num_decodes, self.decode_context, 1)
        if self.answered_context:
            seconds += model.decode(1, self.answered_context, 1, 1) - model.decode(1, 0, 1, 1)
        for length, context in self.answers:
            seconds += context_seconds(model, length, context)
        return seconds


def context_seconds(model: CostModel, length: int, context: int) -> float:
    """What a chunk takes for its queries' meeting the context, beside all that it takes without one."""
    return model.prefill((Chunk(length, context),), 1) - model.prefill((Chunk(length),), 1)


def exchange_seconds(model: CostModel, num_instances: int) -> float:
    """What an iteration takes for its instances' sending each other queries and partial results."""
    if num_instances == 1:
        return 0.0
    return max(0.0, model.decode(1, 0, num_instances, 1) - model.decode(1, 0, 1, 1))


def batch_seconds(batch: RunBatch, model: CostModel) -> float:
    """Predicted seconds of any batch."""
    if any(len(segment.compute) > 1 for segment in batch.segments):
        return BatchShape.of(batch).predict(model)
    loads = dict.fromkeys(batch.group, Load())
    for segment in batch.segments:
        add_segment(loads, segment)
    return max(load.seconds(model) for load in loads.values()) + exchange_seconds(model, len(batch.group))


def add_segment(loads: dict[int, Load], segment: Segment) -> None:
    """Add to each instance its part of a segment that one instance computes.

    A single token behind a context counts as a decode, whatever its request calls it: it costs the same.
    """
    (computes,) = segment.compute
    context = dict(segment.context)
    is_decode = segment.length == 1 and segment.start > 0
    here = context.pop(computes, 0)
    load = loads[computes]
    loads[computes] = load.with_decode(here) if is_decode else load.with_chunk(Chunk(segment.length, here))
    for holder, tokens in context.items():
        load = loads[holder]
        loads[holder] = load.with_answered(tokens) if is_decode else load.with_answers(Chunk(segment.length, tokens))
