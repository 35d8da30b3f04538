"""What steps cost, learned from the steps that run."""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

from longspan.core.costs.cost_model import DecodeCoefficients, FittedCostModel, PrefillCoefficients
from longspan.profiler.fit import nonnegative_least_squares

_KEPT = 6
"""Steps of each size: the newest."""
_CHUNKS, _DECODES, _CHUNKS_ALONE = 3, 3, 8
"""Steps with chunks, and with decodes alone, before costs are known; or with chunks, where nobody ever decodes."""
_FIRST, _SELDOM = 8, 256
"""Steps until costs are fitted anew: at first, and at most."""
_SAME = 0.05
"""Mean error of a log: a model that is no further from another one is the same."""
_MOST_FLOOR = 64
"""Tokens of the smallest chunk worth its while, at most: a ratio of two small coefficients may be anything."""


class Work(NamedTuple):
    """What a step does. tokens: of chunks. pairs: of these, the sum of length^2 + 2 length context. decodes, context:
    requests that decode, and the tokens before those of all together."""

    tokens: int = 0
    pairs: int = 0
    decodes: int = 0
    context: int = 0

    def seconds(self, model: FittedCostModel) -> float:
        row = model.prefill_coefficients[0]
        work_s = row.per_token * self.tokens + row.per_pair * self.pairs
        return model.iteration(work_s, self.decodes, self.context, 1)


def cost_model(fixed: float, per_token: float, per_pair: float, decode: float, context: float) -> FittedCostModel:
    """Return the model of one instance. fixed: of every step. decode, context: of one request, of one token before."""
    if per_pair > 0.0:
        context = min(context, 2 * _MOST_FLOOR * per_pair)
    return FittedCostModel(
        prefill_coefficients=(
            PrefillCoefficients(num_instances=1, fixed=fixed, per_token=per_token, per_pair=per_pair),
        ),
        decode_coefficients=(
            DecodeCoefficients(
                num_instances=1, num_masters=1, fixed=fixed, per_request=decode, per_context_token=context
            ),
        ),
        migration_fixed=0.0,
        migration_per_token=0.0,
    )


GUESS = cost_model(0.02, 1e-4, 0.0, 1e-4, 0.0)
"""Before anything is known; nothing is decided by it."""


class LearnedCosts:
    """Steps of all sizes, and the model that fits them.

    Of each size the newest few count, so that what is seldom seen is not forgotten for what is seen all the time.

    model: the newest. known: whether steps of enough kinds were seen for it to be more than a guess.
    """

    def __init__(self) -> None:
        self.model = GUESS
        self.known = False
        self._steps: dict[tuple[int, ...], deque[tuple[Work, float]]] = {}
        self._chunks = self._decodes = self._since = 0
        self._next, self._next_if_off = 1, _FIRST

    def note(self, work: Work, took_s: float) -> None:
        """Note how long a step took."""
        if took_s <= 0.0 or not (work.tokens or work.decodes):
            return
        self._steps.setdefault(_size(work), deque(maxlen=_KEPT)).append((work, took_s))
        self._chunks += work.tokens > 0
        self._decodes += not work.tokens
        self._since += 1

    def renewed(self, is_off: bool) -> bool:
        """Fit anew if it is time; returns whether `model` is another one now. is_off: predictions are far from true."""
        if not self._is_enough() or self._since < (min(self._next_if_off, self._next) if is_off else self._next):
            return False
        model = self._fit()
        self._since, self._next = 0, min(_SELDOM, max(_FIRST, 2 * self._next))
        if self.known and self._distance(model) <= _SAME:
            self._next_if_off = min(_SELDOM, 2 * self._next_if_off)  # no model of this form is any truer
            return False
        self.model, self.known, self._next_if_off = model, True, _FIRST
        return True

    def _is_enough(self) -> bool:
        return self._chunks >= _CHUNKS and (self._decodes >= _DECODES or self._chunks >= _CHUNKS_ALONE)

    def _fit(self) -> FittedCostModel:
        steps = [step for kept in self._steps.values() for step in kept]
        rows = [(1.0, *work) for work, _ in steps]
        return cost_model(*nonnegative_least_squares(rows, [took_s for _, took_s in steps]).coefficients)

    def _distance(self, model: FittedCostModel) -> float:
        """The mean difference from the model as it is, over all sizes."""
        least = 1e-9
        errors = [
            abs(math.log(max(least, kept[-1][0].seconds(model)) / max(least, kept[-1][0].seconds(self.model))))
            for kept in self._steps.values()
        ]
        return sum(errors) / len(errors)


def _size(work: Work) -> tuple[int, ...]:
    """Steps of one size are alike to a factor of four."""
    chunk_context = work.pairs // max(1, work.tokens)
    decode_context = work.context // max(1, work.decodes)
    return tuple([number.bit_length() // 2 for number in (work.tokens, chunk_context, work.decodes, decode_context)])
