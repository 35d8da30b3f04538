"""LoongServe with one mechanism taken away: what each is worth."""

from __future__ import annotations

from collections.abc import Collection

from longspan.core.policies.loongserve.batching import plan_one_batch
from longspan.core.policies.loongserve.migrations import scale_down_afterwards
from longspan.core.policies.loongserve.policy import LoongServe
from longspan.core.policies.loongserve.scaling import keep_everywhere
from longspan.core.state import SchedulerState


class LoongServeNeverSplits(LoongServe):
    """Prompts dispatched together are one batch (section 5.3), as in the released code: its dynamic program prunes the
    axis of instances from the wrong side, and so never finds a plan of two batches."""

    name = "loongserve_never_splits"

    def __init__(self) -> None:
        super().__init__(batching=plan_one_batch)


class LoongServeNoScaleUp(LoongServe):
    """A decode group never gets an instance that it did not have (figure 13): when its slots run out, its latest
    request is preempted."""

    name = "loongserve_no_scale_up"

    def __init__(self) -> None:
        super().__init__(scale_up=False)


class LoongServeReactive(LoongServe):
    """No proactive scale-down (section 4.1): the KV of a prefill stays on its whole group, and migrates afterwards."""

    name = "loongserve_reactive"

    def __init__(self) -> None:
        super().__init__(retention=keep_everywhere)

    def _settle(self, state: SchedulerState, held: Collection[int]) -> None:
        scale_down_afterwards(state, held)


class LoongServeSingleMaster(LoongServe):
    """One master computes all tokens of a decode batch (section 4.2, figure 14), unless it lacks the slots."""

    name = "loongserve_single_master"

    def __init__(self) -> None:
        super().__init__(max_masters=1)
