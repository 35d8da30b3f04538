"""What is fair to promise where prompts of a hundred tokens stand beside prompts of a million."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from longspan.config import SchedulerConfig
from longspan.core.costs.batch_shape import BatchShape
from longspan.core.costs.cost_model import Chunk
from longspan.metrics.request_metrics import SLO, RequestRecord
from longspan.simulator.cost import IterationCost
from longspan.simulator.spread import evenly_spread


@dataclass(frozen=True, kw_only=True)
class LengthAwareSLO(SLO):
    """A first token after so many times what the prompt takes alone, but no less than a floor (Medha, section 6.1;
    LoongServe's figure 12 has 25 times and 15 seconds).

    alone: seconds of a prompt of so many tokens that nothing else keeps waiting.
    """

    factor: float
    floor_s: float
    alone: Callable[[int], float]

    @classmethod
    def of(cls, config: SchedulerConfig, costs: Sequence[IterationCost]) -> LengthAwareSLO:
        """Return the scheduler's own promise. Alone is on the best fleet, on as many instances as are best."""

        most = config.node_instances or max([cost.fleet.instances for cost in costs])

        @lru_cache(maxsize=1 << 16)
        def alone(tokens: int) -> float:
            return min(
                cost.batch(evenly_spread(BatchShape(num_instances=instances, chunks=(Chunk(tokens),)))).total
                for cost in costs
                for instances in range(1, min(most, cost.fleet.instances) + 1)
            )

        return cls(
            tpot_s=config.tpot_slo_s, factor=config.ttft_slo_factor, floor_s=config.ttft_slo_floor_s, alone=alone
        )

    def met_by(self, record: RequestRecord) -> bool:
        if not super().met_by(record) or record.ttft_s is None:
            return False
        return record.ttft_s <= self.floor_s or record.ttft_s <= self.factor * self.alone(record.num_prompt_tokens)
