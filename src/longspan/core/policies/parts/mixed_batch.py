"""A mixed batch: decodes and chunks of prompts in one iteration of one instance, within a budget of tokens."""

from __future__ import annotations

from longspan.core.books.cluster import Instance
from longspan.core.books.request import Request
from longspan.core.policies.parts.adoption import adopt_each
from longspan.core.state import SchedulerState


class MixedBatch:
    """A batch, put together request by request, then run.

    left: tokens that may still be added. slots: free slots that it will take and that no request has reserved.
    """

    def __init__(self, state: SchedulerState, instance: Instance, budget: int) -> None:
        self.instance = instance
        self._state = state
        self.left = budget
        self.slots = 0
        self._tokens: dict[Request, int] = {}

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def requests(self) -> list[Request]:
        return list(self._tokens)

    def add(self, request: Request, most: int | None = None) -> None:
        """Add as many tokens without KV as budget and slots allow, `most` at most; a decode has one.

        One that has waited takes over what the instance has of its prefix.
        """
        if self.left:
            adopt_each(self._state, [request], [self.instance.id])
        tokens = min(request.tokens_to_compute, self.left)
        if most is not None:
            tokens = min(tokens, most)
        if not request.reserved:
            tokens = min(tokens, self.instance.unreserved - self.slots)
        if tokens:
            self.left -= tokens
            self.slots += 0 if request.reserved else tokens
            self._tokens[request] = tokens

    def run(self) -> None:
        """Run the batch; an empty one is not issued."""
        if self._tokens:
            here = self.instance.id
            segments = [
                self._state.prefill_segment(request, (here,), ((here, tokens),))
                for request, tokens in self._tokens.items()
            ]
            self._state.run_batch((here,), segments)
