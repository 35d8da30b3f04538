"""Which waiting prompts gladly run together: the half of dispatching (step 1) that memory has no say in.

With n prompts R_p dispatched already, one more, r, joins them while joining beats waiting:

    joining costs   n (T(R_p + r, E_p) - T(R_p, E_p)) + T(R_p + r, E_p)     all run as one batch
    or              n (T(R_p, E_p - c) - T(R_p, E_p)) + T({r}, c)           r has c instances for itself
    waiting costs   T(R_p, E_p) + T({r}, E_p)                               r runs after them

in seconds of input latency. For equal prompts, joining as one batch wins as long as the work of R_p is less than its
fixed cost: that is the paper's tipping point between a memory-bound and a compute-bound prefill, derived in place of
the released code's constant `max_prefill_time`. The second line lets a short prompt go beside a long one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate
from operator import add

from longspan.core.policies.loongserve.prefill_times import PrefillTimes
from longspan.core.policies.loongserve.survey import Prompt

MAX_BATCHING = 256
"""|R_p| |E_p| at most, or MIN_PROMPTS prompts, whatever is more: it keeps batching below a millisecond."""
MIN_PROMPTS = 16
_MANY = 48  # instances, from which on arrays are faster than lists


class Joining:
    """Which of some prompts, in order of arrival, join those before: worked out once for each number of instances,
    however often it is asked for while the queue stays as it is.

    max_batch_tokens: tokens dispatched at once, for each instance; where there are several, beside the longest prompt.
    """

    def __init__(self, prompts: Sequence[Prompt], times: PrefillTimes, max_batch_tokens: int) -> None:
        self._prompts = prompts
        self._times = times
        self._max_batch_tokens = max_batch_tokens
        self._needs = list(accumulate(prompt.need for prompt in prompts))
        self._seconds: dict[int, list[float]] = {}

    @property
    def needed(self) -> int:
        """Room for all of them."""
        return self._needs[-1]

    def fitting(self, room: int) -> int:
        """Return how many of the first find so much room."""
        return bisect_right(self._needs, room)

    def seconds(self, num_instances: int) -> Sequence[float]:
        """Return T of none, of the first, of the first two, ... as one batch: as many as join."""
        if num_instances not in self._seconds:
            self._seconds[num_instances] = self._join(num_instances)
        return self._seconds[num_instances]

    def _join(self, E: int) -> list[float]:
        seconds = [self._times.fixed[E - 1]]
        joined: list[int] = []  # lengths
        tokens = longest = 0
        for prompt in self._prompts[: max(MIN_PROMPTS, MAX_BATCHING // E)]:
            tokens += prompt.tokens
            longest = max(longest, prompt.tokens)
            apart = longest if E > 1 else 0  # a long one can have instances, and so a batch, of its own
            if joined and tokens - apart > self._max_batch_tokens * E:
                break
            if joined and not _pays(joined, seconds[-1], prompt.tokens, self._times, E):
                break
            seconds.append(seconds[-1] + self._times.work(prompt.tokens)[E - 1])
            joined.append(prompt.tokens)
        return seconds


@dataclass(frozen=True, slots=True)
class Queue:
    """The first prompts of those that `joining` is about; none but these are to be dispatched now."""

    prompts: tuple[Prompt, ...]
    joining: Joining

    @classmethod
    def of(cls, prompts: Sequence[Prompt], times: PrefillTimes, max_batch_tokens: int) -> Queue:
        return cls(tuple(prompts), Joining(prompts, times, max_batch_tokens))

    def first(self, count: int) -> Queue:
        return self if count >= len(self.prompts) else Queue(self.prompts[:count], self.joining)

    def join(self, num_instances: int, room: int) -> tuple[int, float]:
        """Return how many prompts so many instances with so much room take, and T(R_p, E_p) of them, seconds."""
        if not num_instances:
            return 0, 0.0
        seconds = self.joining.seconds(num_instances)
        count = min(len(self.prompts), len(seconds) - 1, self.joining.fitting(room))
        return count, seconds[count]


def _pays(joined: Sequence[int], now: float, tokens: int, times: PrefillTimes, E: int) -> bool:
    """Whether one more prompt should run now, with the n others or beside them, rather than after them.

    joined: the others' lengths. now: T of them, as one batch on all instances.
    """
    n, work = len(joined), times.work(tokens)
    wait = now + times.fixed[E - 1] + work[E - 1]
    if n * work[E - 1] + now + work[E - 1] <= wait:
        return True
    # T of the others on the E - c instances that c for itself leave them, for c = 1, 2, ...
    if E > _MANY:
        fewer = reduce(add, [times.work_array(other)[: E - 1] for other in joined], times.fixed_array[: E - 1])
        beside = n * (fewer[::-1] - now) + times.fixed_array[: E - 1] + times.work_array(tokens)[: E - 1]
        return bool((beside <= wait).any())
    columns = zip(times.fixed[: E - 1], *map(times.work, joined), strict=False)
    fewer_s = [reduce(add, column) for column in columns][::-1]
    return any(
        n * (seconds - now) + alone + more <= wait
        for seconds, alone, more in zip(fewer_s, times.fixed, work, strict=False)
    )
