"""The policy `longspan`, where another engine carries out what it decides.

It decides by the same order, promises, chunk sizes and feedback. Only the frame is another one: decodes are counted
instead of listed, since vLLM runs all of them in every step, and there may be hundreds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from longspan.core.books.request import Request
from longspan.core.policies.chunked.iteration import Iteration
from longspan.core.policies.chunked.packing import Packer
from longspan.core.policies.chunked.predictor import Predictor
from longspan.core.policies.chunked.priority import Standing
from longspan.core.policies.chunked.ranking import Backlog
from longspan.core.policies.longspan.policy import Longspan
from longspan.core.policies.parts.pace import Gaps
from longspan.core.state import SchedulerState
from longspan.integrations.vllm.view import INSTANCE, EngineView


class Decodes(NamedTuple):
    """The requests that decode, all together. context: their tokens. gaps: the tightest. promised: slots that they
    count on for their coming tokens."""

    many: int = 0
    context: int = 0
    gaps: Gaps = Gaps(0.0, 0.0, 0.0)
    promised: int = 0


class VllmLongspan(Longspan):
    """For one instance, which is vLLM's engine."""

    def known(self, state: SchedulerState) -> Predictor:
        """Return what it predicts with."""
        return self._predictor(state)

    def renew(self, state: SchedulerState) -> None:
        """Predict by the state's cost model and service levels as they are now; all else that is known stays."""
        feedback = self._predictor(state).feedback
        feedback.renew(state.config.num_instances)
        self._known = self.predictor(state)
        self._known.feedback = feedback
        self._backlog = Backlog()
        self._unserved.renew()

    def _goes_on(self, state: SchedulerState) -> Callable[[str], bool]:
        """Those that have ended have no tokens any more here."""
        assert isinstance(state, EngineView)
        return state.placement.begun.__contains__

    def restand(self, state: SchedulerState, request: Request) -> None:
        """Note that more, or less, is to be computed of a request that waits."""
        self._backlog.change(state, request, lambda one: self.standing(state, one, one.arrived))
        self._unserved.change(request)

    def begins(self, request: Request) -> None:
        """Note that a request that waits is about to run."""
        self._unserved.change(request)

    def standing(self, state: SchedulerState, request: Request, now: float) -> Standing[float]:
        """What the prefix cache has is no work: it puts off no deadline that goes by the work."""
        standing = super().standing(state, request, now)
        assert isinstance(state, EngineView)
        found = state.found.get(request.id, 0)
        if not found or request.service.ttft_s is not None or request.num_output_tokens:
            return standing
        predictor = self._predictor(state)
        work_s = predictor.alone(request.num_prompt_tokens) - predictor.prefill(min(found, request.num_prompt_tokens))
        config = state.config
        return replace(standing, deadline_s=max(config.ttft_slo_factor * work_s, config.ttft_slo_floor_s))

    def step(
        self, view: EngineView, decodes: Decodes, slots: int, seats: int, now: float
    ) -> tuple[Iteration, list[str]]:
        """Return the next step, and who begins in it, first things first.

        slots: KV slots that are free. seats: how many may begin. Preempts, through the view, whom memory asks for.
        """
        while True:
            view.set_room(slots - decodes.many, decodes.promised)
            ranking = self._ranking(view, now)
            if seats <= 0:
                ranking = replace(ranking, order=ranking.order[:0])
            iteration = Iteration(self._predictor(view), (INSTANCE,), now)
            if decodes.many:
                iteration.add_counted_decodes(INSTANCE, decodes.many, decodes.context, decodes.gaps)
            packer = Packer(view, iteration, self.max_space_share, {}, self.width, self.pool_shares)
            packer.pack(ranking)
            held = _stored(view)
            if not self._relieve(view, packer, now):
                return iteration, [admission.request.id for admission in packer.admissions.admitted]
            slots += held - _stored(view)


def _stored(view: EngineView) -> int:
    return sum([request.num_stored for request in view.prefills.values()])
