"""The prefill work that has been done, in seconds as predicted of prompts alone."""

from __future__ import annotations

from longspan.core.actions import RunBatch
from longspan.core.policies.chunked.predictor import Predictor


def prefill_seconds(predictor: Predictor, batch: RunBatch) -> float:
    """Return the predicted seconds of prefill that a batch does; its decodes count nothing."""
    return sum(
        [
            max(0.0, predictor.prefill(segment.start + segment.length) - predictor.prefill(segment.start))
            for segment in batch.segments
            if segment.length > 1 or not segment.emits
        ]
    )
