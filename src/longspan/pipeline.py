"""Which decoder layers each pipeline stage holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PipelineStage:
    """Consecutive layers of a model. The first stage embeds tokens, the last turns what comes out into logits."""

    layers: range
    is_first: bool = True
    is_last: bool = True

    @classmethod
    def of(cls, stage: int, sizes: Sequence[int]) -> PipelineStage:
        """Return a stage. sizes: layers of every stage, in order."""
        begin = sum(sizes[:stage])
        return cls(range(begin, begin + sizes[stage]), is_first=stage == 0, is_last=stage == len(sizes) - 1)


def balanced_stages(num_layers: int, num_stages: int, layer_s: float, first_s: float, last_s: float) -> tuple[int, ...]:
    """Return the layers of each stage, at least one, so that the slowest takes as little time as can be.

    Seconds: of one layer; of what the first and the last stage do beside their layers, embedding and head. A pipeline
    goes at the pace of its slowest stage. Layers are alike, so giving each in turn to the least loaded stage is best.
    """
    loads = [layer_s + first_s * (stage == 0) + last_s * (stage == num_stages - 1) for stage in range(num_stages)]
    sizes = [1] * num_stages
    for _ in range(num_layers - num_stages):
        least = loads.index(min(loads))
        sizes[least] += 1
        loads[least] += layer_s
    return tuple(sizes)
