"""What prefills would take, asked often and by many steps."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from longspan.core.costs.cost_model import CostModel

CACHED_LENGTHS = 4096


class PrefillTimes:
    """T_n(R) = fixed_n + sum over R of work_n(length), n instances; seconds (equation 7).

    A batch costs a fixed amount and the sum of what its prompts add, so two calls of the cost model for each prompt
    say it all, and any batch is a sum. Lists go by n - 1. A pure function of the cost model; it only remembers.
    """

    def __init__(self, cost_model: CostModel, max_instances: int) -> None:
        self._cost_model = cost_model
        self.fixed = [cost_model.prefill((), number) for number in range(1, max_instances + 1)]
        self.fixed_array = np.array(self.fixed)
        self._work: dict[int, list[float]] = {}
        self._work_arrays: dict[int, NDArray[np.float64]] = {}

    def work(self, tokens: int) -> list[float]:
        """Return the seconds that a prompt of so many tokens adds to a batch, by number of instances."""
        work = self._work.get(tokens)
        if work is None:
            if len(self._work) >= CACHED_LENGTHS:
                self._work.clear()
                self._work_arrays.clear()
            added = self._cost_model.work
            work = [(fixed + added(tokens, 0, n)) - fixed for n, fixed in enumerate(self.fixed, start=1)]
            self._work[tokens] = work
        return work

    def work_array(self, tokens: int) -> NDArray[np.float64]:
        """Return the same as an array, for where many instances are compared."""
        work = self._work_arrays.get(tokens)
        if work is None:
            work = self._work_arrays[tokens] = np.array(self.work(tokens))
        return work

    def batch(self, lengths: Iterable[int], num_instances: int) -> float:
        """Return T of one batch with prompts of these lengths."""
        return self.fixed[num_instances - 1] + sum(self.work(tokens)[num_instances - 1] for tokens in lengths)
