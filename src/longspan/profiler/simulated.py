"""The cost model that `longspan profile` would make on a simulated fleet: the same points, the same fit.

So what a policy predicts with in a simulation errs as it does in reality: by its form.
"""

from __future__ import annotations

from statistics import median

from longspan.config import SchedulerConfig
from longspan.core.costs.batch_shape import BatchShape
from longspan.core.costs.cost_model import FittedCostModel
from longspan.profiler.fit import fit_cost_model
from longspan.profiler.grid import fit_groups
from longspan.sib import MeasuredIteration, MeasuredMigration, Measurements
from longspan.simulator.cost import IterationCost
from longspan.simulator.spread import evenly_spread


def fit_simulated(cost: IterationCost, config: SchedulerConfig, max_model_len: int) -> FittedCostModel:
    """Fit it for as many instances as the largest node has."""
    return fit_cost_model(measure_simulated(cost, config, max_model_len), config.of_node().num_instances)


def measure_simulated(cost: IterationCost, config: SchedulerConfig, max_model_len: int) -> Measurements:
    works = {
        work
        for group in fit_groups(config.of_node(), max_model_len)
        for episode in group
        for work, _ in episode.work()
    }
    batches = sorted((work for work in works if isinstance(work, BatchShape)), key=repr)
    took = {work: cost.batch(evenly_spread(work)) for work in batches}
    return Measurements(
        iterations=tuple(
            MeasuredIteration(
                shape=work, seconds=seconds.in_a_row if work.kind == "decode" else seconds.total, samples=1
            )
            for work, seconds in took.items()
        ),
        migrations=tuple(
            MeasuredMigration(num_tokens=work, seconds=cost.migration(work, (0, 1)), samples=1)
            for work in sorted(w for w in works if isinstance(w, int))
        ),
        unqueued_s=median(seconds.total - seconds.in_a_row for work, seconds in took.items() if work.kind == "decode"),
    )
