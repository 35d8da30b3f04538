"""What the time of an iteration depends on, and what a cost model says of it."""

from __future__ import annotations

from dataclasses import dataclass

from longspan.core.actions import RunBatch
from longspan.core.costs.cost_model import Chunk, CostModel


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchShape:
    """One iteration of a group: prompts or chunks, decoding requests, or both.

    num_requests: that decode. context_tokens: what these have KV of already, all together.
    num_masters: instances that compute a decoding request's token.
    """

    num_instances: int
    chunks: tuple[Chunk, ...] = ()
    num_requests: int = 0
    context_tokens: int = 0
    num_masters: int = 0

    @classmethod
    def of(cls, batch: RunBatch) -> BatchShape:
        """Return the batch's shape.

        A single token behind a context counts as a decode, whatever its request calls it: it costs the same.
        """
        decodes = [segment for segment in batch.segments if segment.length == 1 and segment.start > 0]
        chunks = [segment for segment in batch.segments if segment.length > 1 or segment.start == 0]
        return cls(
            num_instances=len(batch.group),
            chunks=tuple(Chunk(segment.length, segment.start) for segment in chunks),
            num_requests=len(decodes),
            context_tokens=sum(segment.start for segment in decodes),
            num_masters=len({segment.compute[0] for segment in decodes}),
        )

    @property
    def kind(self) -> str:
        """"prefill", "decode" or "mixed"."""
        if not self.chunks:
            return "decode"
        return "mixed" if self.num_requests else "prefill"

    def predict(self, model: CostModel) -> float:
        """Return the predicted seconds."""
        if self.kind == "mixed":
            return model.mixed(self.chunks, self.num_requests, self.context_tokens, self.num_instances)
        if self.kind == "prefill":
            return model.prefill(self.chunks, self.num_instances)
        return model.decode(self.num_requests, self.context_tokens, self.num_instances, self.num_masters)
