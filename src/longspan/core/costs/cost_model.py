"""How long things take: what a policy predicts with.

The forms are LoongServe's (section 5.5, equation 7), with two steps further: a chunk that meets earlier context pays
for the pairs of tokens that it adds, and decode iterations have a model of their own. Lengths in tokens, times in
seconds. Attention is summed request by request, never over a batch's averages.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol

from longspan.errors import ConfigError


class Chunk(NamedTuple):
    """`length` new prompt tokens of one request behind `context` tokens that have KV already."""

    length: int
    context: int = 0


class CostModel(Protocol):
    """Predictions for one deployment. Instances are alike; only their number counts."""

    def prefill(self, chunks: Iterable[Chunk], num_instances: int) -> float:
        """Return the seconds of one batch of prompts or chunks, striped over so many instances."""

    def work(self, length: int, context: int, num_instances: int) -> float:
        """Return the seconds that a chunk adds to an iteration. The work of several chunks adds up."""

    def decode(self, num_requests: int, context_tokens: int, num_instances: int, num_masters: int) -> float:
        """Return the seconds of one decode iteration. context_tokens: of all its requests together."""

    def mixed(self, chunks: Iterable[Chunk], num_requests: int, context_tokens: int, num_instances: int) -> float:
        """Return the seconds of one iteration that has both; one fixed cost, and the work of each."""

    def iteration(self, work_s: float, num_requests: int, context_tokens: int, num_instances: int) -> float:
        """Return what `mixed` does, for chunks whose work is summed up already."""

    def migration(self, num_tokens: int) -> float:
        """Return the seconds to move the KV of so many tokens from one instance to another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillCoefficients:
    """T = fixed + per_token * sum(len) + per_pair * sum(len^2 + 2 len context); equation 7's alpha, beta, gamma."""

    num_instances: int
    fixed: float
    per_token: float
    per_pair: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeCoefficients:
    """T = fixed + per_request * max(0, batch - free_requests) + per_context_token * context, for so many instances and
    masters.

    free_requests: that are computed while the weights are read, and take no time of their own.
    """

    num_instances: int
    num_masters: int
    fixed: float
    per_request: float
    per_context_token: float
    free_requests: float = 0.0


class _PrefillRows(dict[int, PrefillCoefficients]):
    """By the number of instances; of more than were measured, what follows from the last two."""

    def __init__(self, rows: Iterable[PrefillCoefficients]) -> None:
        super().__init__({row.num_instances: row for row in rows})
        self._most = len(self)

    def __missing__(self, number: int) -> PrefillCoefficients:
        most = self._most
        last, before = self[most], self[max(1, most - 1)]
        row = self[number] = replace(
            last, num_instances=number, fixed=_grown(last.fixed, before.fixed, number - most),
            per_token=last.per_token * most / number, per_pair=last.per_pair * most / number,
        )  # fmt: skip
        return row


class _DecodeRows(dict[tuple[int, int], DecodeCoefficients]):
    """By the numbers of instances and of masters; in the same way, for one master or as many as instances."""

    def __init__(self, rows: Iterable[DecodeCoefficients]) -> None:
        super().__init__({(row.num_instances, row.num_masters): row for row in rows})
        self._most = max([instances for instances, _ in self], default=0)

    def __missing__(self, key: tuple[int, int]) -> DecodeCoefficients:
        (number, masters), most = key, self._most
        is_one = masters == 1
        last = self[(most, 1 if is_one else most)]
        fewer = max(1, most - 1)
        before, share = self[(fewer, 1 if is_one else fewer)], most / number
        row = self[key] = replace(
            last, num_instances=number, num_masters=masters, fixed=_grown(last.fixed, before.fixed, number - most),
            per_request=last.per_request * (1.0 if is_one else share),
            per_context_token=last.per_context_token * share,
            free_requests=last.free_requests / (1.0 if is_one else share),
        )  # fmt: skip
        return row


def _grown(last: float, before: float, steps: int) -> float:
    return last + max(0.0, last - before) * steps


@dataclass(frozen=True, kw_only=True)
class FittedCostModel:
    """Measured once (`longspan profile`) or derived from the model's shape; plain data, so that a log can carry it.

    prefill_coefficients: one for each number of instances from 1 on, in order.
    decode_coefficients: for each number of instances at least one master and as many masters as instances; numbers
        of masters between are interpolated.

    Of more instances than that, as a fleet may come to have, it says what follows from the last two rows: fixed costs
    grow on, and work is shared by more.
    """

    prefill_coefficients: tuple[PrefillCoefficients, ...]
    decode_coefficients: tuple[DecodeCoefficients, ...]
    migration_fixed: float
    migration_per_token: float

    def __post_init__(self) -> None:
        for place, row in enumerate(self.prefill_coefficients, start=1):
            if row.num_instances != place:
                raise ConfigError(f"a cost model lacks prefill coefficients for {place} instances")
        for number in range(1, self.max_instances + 1):
            for masters in {1, number}:
                if (number, masters) not in self._decode_rows:
                    raise ConfigError(
                        f"a cost model lacks decode coefficients for {number} instances, {masters} masters"
                    )

    @property
    def max_instances(self) -> int:
        return len(self.prefill_coefficients)

    @cached_property
    def _prefill_rows(self) -> dict[int, PrefillCoefficients]:
        return _PrefillRows(self.prefill_coefficients)

    @cached_property
    def _decode_rows(self) -> dict[tuple[int, int], DecodeCoefficients]:
        return _DecodeRows(self.decode_coefficients)

    def prefill(self, chunks: Iterable[Chunk], num_instances: int) -> float:
        try:
            seconds = self.prefill_coefficients[num_instances - 1].fixed
        except IndexError:
            seconds = self._prefill_rows[num_instances].fixed
        return seconds + sum([self.work(length, context, num_instances) for length, context in chunks])

    def work(self, length: int, context: int, num_instances: int) -> float:
        try:  # as nearly always; it is asked more than anything else
            row = self.prefill_coefficients[num_instances - 1]
        except IndexError:
            row = self._prefill_rows[num_instances]
        return length * (row.per_token + row.per_pair * (length + 2 * context))

    def decode(self, num_requests: int, context_tokens: int, num_instances: int, num_masters: int) -> float:
        row = self._decode_rows.get((num_instances, num_masters))
        if row is None and num_masters in (1, num_instances):
            row = self._decode_rows[(num_instances, num_masters)]
        if row is not None:
            computed = max(0.0, num_requests - row.free_requests)
            return row.fixed + row.per_request * computed + row.per_context_token * context_tokens
        one = self.decode(num_requests, context_tokens, num_instances, 1)
        all_ = self.decode(num_requests, context_tokens, num_instances, num_instances)
        return one + (all_ - one) * (num_masters - 1) / (num_instances - 1)

    def mixed(self, chunks: Iterable[Chunk], num_requests: int, context_tokens: int, num_instances: int) -> float:
        work_s = sum([self.work(length, context, num_instances) for length, context in chunks])
        return self.iteration(work_s, num_requests, context_tokens, num_instances)

    def iteration(self, work_s: float, num_requests: int, context_tokens: int, num_instances: int) -> float:
        try:
            row = self.prefill_coefficients[num_instances - 1]
        except IndexError:
            row = self._prefill_rows[num_instances]
        if not num_requests:
            return row.fixed + work_s
        if not work_s:
            return self.decode(num_requests, context_tokens, num_instances, 1)
        # What is computed while the weights are read is the chunks' part: no request decodes for free beside them.
        decodes = self._decode_rows[(num_instances, 1)]
        fixed = max(row.fixed, decodes.fixed)
        return fixed + work_s + decodes.per_request * num_requests + decodes.per_context_token * context_tokens

    def migration(self, num_tokens: int) -> float:
        return self.migration_fixed + self.migration_per_token * num_tokens
