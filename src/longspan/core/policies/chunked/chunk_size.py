"""How many tokens a request's chunk has: the largest that its part's target still allows (the paper's algorithm 1)."""

from __future__ import annotations

from longspan.core.actions import KVRange
from longspan.core.books.request import Request
from longspan.core.policies.chunked.iteration import Context, Iteration


class Chunks:
    """Sizes the chunks of one iteration, and adds them to it.

    A chunk is large early in a prompt and small late, when every token attends to much.

    full: instances that have no time or no tokens left for another request's first chunk.
    """

    def __init__(self, iteration: Iteration, max_batch_tokens: int) -> None:
        self.iteration = iteration
        self.max_batch_tokens = max_batch_tokens
        self.full: set[int] = set()
        self._served: set[int] = set()

    def is_next(self, *instances: int) -> bool:
        """Tell whether none higher in rank prefills on the instances: then it gets at least the smallest chunk."""
        is_first = self._served.isdisjoint(instances)
        self._served.update(instances)
        return is_first

    def add(self, request: Request, planned: KVRange, context: Context, is_next: bool, limit: float) -> int:
        """Add a chunk; returns its tokens, all from the open shard; 0 if the smallest worth its while finds no time."""
        instance, floor = planned.instance, self.iteration.predictor.floor
        most = min(planned.length, self.max_batch_tokens - self.iteration.tokens(instance))
        if most <= 0:
            self.full.add(instance)
            return 0
        smallest = min(floor, planned.length, most)
        length = self.iteration.largest_chunk(instance, context, most, limit)
        if length < smallest:
            if not is_next:
                if not context:
                    self.full.add(instance)
                return 0
            length = smallest
        self.iteration.add_chunk(request, instance, context, length)
        return length

    def add_wide(self, request: Request, team: tuple[int, ...], is_next: bool, limit: float) -> int:
        """Add a chunk that a team computes; returns its tokens, as `add` does."""
        context = request.num_stored
        most = len(team) * self.max_batch_tokens - sum([self.iteration.tokens(number) for number in team])
        most = min(request.tokens_to_compute, most)
        if most <= 0 or self.iteration.saves_up(team):
            return 0
        smallest = min(len(team) * self.iteration.predictor.floor, most)
        length = self.iteration.largest_wide_chunk(team, context, most, limit)
        if length < smallest:
            if not is_next or not self.iteration.can_be_joined(team):
                return 0
            length = smallest
        self.iteration.add_wide_chunk(request, team, context, length)
        return length
