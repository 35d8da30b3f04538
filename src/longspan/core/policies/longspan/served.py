"""What a batch did for whom, in predicted seconds of one instance's work."""

from __future__ import annotations

from collections.abc import Iterator

from longspan.core.actions import RunBatch
from longspan.core.policies.chunked.predictor import Predictor


def served_seconds(batch: RunBatch, predictor: Predictor) -> Iterator[tuple[str, float]]:
    """Yield ids of requests with the seconds of work that each has had in a batch.

    A chunk's share in fixed costs is that of a chunk that runs alone; decodes without any chunk beside them share
    these.
    """
    decodes = [segment for segment in batch.segments if segment.length == 1 and segment.start > 0]
    if decodes:
        model, stages, many = predictor.model, predictor.config.pp, len(decodes)
        fixed_s = model.decode(0, 0, 1, 1)
        each_s = (model.decode(many, 0, 1, 1) - (fixed_s if many < len(batch.segments) else 0.0)) / many
        for segment in decodes:
            context_s = model.decode(0, segment.start, 1, 1) - fixed_s
            yield segment.request_id, (each_s + context_s) / stages
    for segment in batch.segments:
        if segment.length > 1 or segment.start == 0:
            yield segment.request_id, predictor.work(segment.end) - predictor.work(segment.start)
