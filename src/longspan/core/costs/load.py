"""What one instance does in an iteration, and how long that takes.

Where instances compute segments of their own and answer each other's queries, as in KV-cache parallelism, an iteration
takes as long as its busiest instance, and one exchange. (Where all stripe the same segments, see `BatchShape`.)
"""

from __future__ import annotations

from collections.abc import Mapping

from longspan.core.actions import RunBatch, Segment
from longspan.core.costs.batch_shape import BatchShape
from longspan.core.costs.cost_model import CostModel


class Load:
    """One instance's part, summed up: what one more chunk would make of it is soon told, and asked often.

    tokens: of chunks computed here.
    """

    __slots__ = ("_answered_context", "_answers_s", "_chunks_s", "_decode_context", "_model", "_num_decodes",
                 "_seconds", "tokens")  # fmt: skip

    def __init__(self, model: CostModel) -> None:
        self._model = model
        self.tokens = 0
        self._chunks_s = 0.0
        self._num_decodes = 0
        self._decode_context = 0
        self._answered_context = 0
        self._answers_s: list[float] = []
        self._seconds: float | None = 0.0  # None: to be worked out anew

    def add_chunk(self, length: int, context: int) -> None:
        """Add a chunk computed here, with as much of its context as is here."""
        self.tokens += length
        self._chunks_s += self._model.work(length, context, 1)
        self._seconds = None

    def add_share(self, tokens: int, seconds: float) -> None:
        """Add this instance's share of a chunk that several compute. tokens: that it computes."""
        self.tokens += tokens
        self._chunks_s += seconds
        self._seconds = None

    def add_answers(self, length: int, context: int) -> None:
        """Add queries of a chunk computed elsewhere, with as much of its context as is here."""
        self._answers_s.append(context_seconds(self._model, length, context))
        self._seconds = None

    def add_decode(self, context: int) -> None:
        """Add a request that decodes here, with what of its context is here."""
        self._num_decodes += 1
        self._decode_context += context
        self._seconds = None

    def add_decodes(self, many: int, context: int) -> None:
        """Add many of them, with so much context together."""
        self._num_decodes += many
        self._decode_context += context
        self._seconds = None

    def add_answered(self, context: int) -> None:
        """Add the context of a request that decodes elsewhere."""
        self._answered_context += context
        self._seconds = None

    def seconds(self) -> float:
        if self._seconds is None:
            own_s = 0.0
            if self.tokens or self._num_decodes:
                own_s = self._model.iteration(self._chunks_s, self._num_decodes, self._decode_context, 1)
            self._seconds = self._with_answers(own_s)
        return self._seconds

    def decode_seconds(self) -> float:
        """Return the seconds as if no chunk were there."""
        own_s = 0.0
        if self._num_decodes:
            own_s = self._model.iteration(0.0, self._num_decodes, self._decode_context, 1)
        return own_s + self._answered_seconds()

    def seconds_with_chunk(self, length: int, context: int) -> float:
        """Return the seconds as if the chunk were added."""
        work_s = self._chunks_s + self._model.work(length, context, 1)
        return self._with_answers(self._model.iteration(work_s, self._num_decodes, self._decode_context, 1))

    def seconds_with_share(self, seconds: float) -> float:
        """Return the seconds as if the share were added."""
        work_s = self._chunks_s + seconds
        return self._with_answers(self._model.iteration(work_s, self._num_decodes, self._decode_context, 1))

    def seconds_with_answers(self, length: int, context: int) -> float:
        """Return the seconds as if the answers were added."""
        return self.seconds() + context_seconds(self._model, length, context)

    def _with_answers(self, seconds: float) -> float:
        if self._answered_context:
            seconds += self._answered_seconds()
        for answer_s in self._answers_s:
            seconds += answer_s
        return seconds

    def _answered_seconds(self) -> float:
        if not self._answered_context:
            return 0.0
        return self._model.decode(1, self._answered_context, 1, 1) - self._model.decode(1, 0, 1, 1)


def context_seconds(model: CostModel, length: int, context: int) -> float:
    """Return the seconds of a chunk for its queries' meeting the context, beside all that it takes without one."""
    fixed_s = model.prefill((), 1)
    return (fixed_s + model.work(length, context, 1)) - (fixed_s + model.work(length, 0, 1))


def exchange_seconds(model: CostModel, num_instances: int) -> float:
    """Return the seconds of an iteration for its instances' sending each other queries and partial results."""
    if num_instances == 1:
        return 0.0
    return max(0.0, model.decode(1, 0, num_instances, 1) - model.decode(1, 0, 1, 1))


def ring_seconds(model: CostModel, num_instances: int) -> float:
    """Return the seconds of an iteration for passing KV round a ring of instances, beside what they compute."""
    return max(0.0, model.prefill((), num_instances) - model.prefill((), 1))


def batch_seconds(batch: RunBatch, model: CostModel) -> float:
    """Return the predicted seconds of any batch."""
    if any(len(segment.compute) > 1 for segment in batch.segments):
        return BatchShape.of(batch).predict(model)
    loads = {number: Load(model) for number in batch.group}
    for segment in batch.segments:
        add_segment(loads, segment)
    return max(load.seconds() for load in loads.values()) + exchange_seconds(model, len(batch.group))


def add_segment(loads: Mapping[int, Load], segment: Segment) -> None:
    """Add to each instance its part of a segment that one instance computes.

    A single token behind a context counts as a decode, whatever its request calls it: it costs the same.
    """
    (computes,) = segment.compute
    context = dict(segment.context)
    here = context.pop(computes, 0)
    if segment.length == 1 and segment.start > 0:
        loads[computes].add_decode(here)
        for holder, tokens in context.items():
            loads[holder].add_answered(tokens)
    else:
        loads[computes].add_chunk(segment.length, here)
        for holder, tokens in context.items():
            loads[holder].add_answers(segment.length, tokens)
