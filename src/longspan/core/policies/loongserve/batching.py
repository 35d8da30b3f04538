"""Step 3, batching (section 5.3, equation 5): which prompts run together, and on how many instances each batch.

    f[i][k] = min over j < i, l < k with D[j, i] <= V[l, k] of f[j][l] + cost(R[j, i], k - l)

Prompts are sorted by length, longest first, instances by free slots, most first. f[i][k] is the least cost of the first
i prompts on the first k instances; the batch of prompts j to i needs D[j, i] slots, and instances l to k have V[l, k].
The answer is the least f[|R|][k]: instances that would speed nothing up stay free for other work.

What is minimised. Equation 5 as printed adds up the batches' times, the text says the sum of input latencies: each of
a batch's prompts has its batch's time, so a batch counts as often as it has prompts. That is our default; as printed, a
short prompt would always be put into a long one's batch. The released code counts each prompt by 1 / length
(`normalised`), which leaves the long ones few instances whenever a short one is there.

How fast. Equation 6 prunes to O((|R| + |E|)^2) by the quadrangle inequality, on both axes at once. It is not exact
here: D <= V forbids some batches, and the fixed costs are measured, so the inequality fails
(tests/core/test_loongserve_batching.py shows how often it misses the optimum; the released code moreover has its bound
on instances the wrong way round, and so never splits a batch). So every cell is looked at: |R|^2 |E| (|E| + 1) / 2,
counted in `cells`, which always holds; numpy does it, and dispatching sees to it that |R| |E| stays small. Where there
are hundreds of instances, E is first cut to those that a best plan can have any use for (`_enough`), which is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

GREEDY = 8
"""So many instances a batch may have however little more of them help: the paper has no more (16 GPUs, two each)."""

Objective = Literal["latency", "normalised"]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts to batch, longest first.

    lengths: tokens. needs: slots, for the tokens and the headroom. work: seconds that the prompt adds to a batch
        on 1, 2, ... |E| instances.
    """

    lengths: Sequence[int]
    needs: Sequence[int]
    work: Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """Prompts [first, last) together on instances [begin, end); places in the order given."""

    first: int
    last: int
    begin: int
    end: int
    seconds: float

    @property
    def num_instances(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """All prompts, in batches that run at once. cost: the objective. cells: how many candidates were compared."""

    batches: tuple[PlannedBatch, ...]
    cost: float
    cells: int


Batching = Callable[[Prompts, Sequence[int], Sequence[float], int, int, Objective, float], BatchPlan | None]
"""How a step 3 is called; see `plan_batches`."""


def plan_batches(
    prompts: Prompts,
    rooms: Sequence[int],
    fixed: Sequence[float],
    max_batch_tokens: int,
    min_tokens_per_instance: int = 0,
    objective: Objective = "latency",
    min_efficiency: float = 0.0,
) -> BatchPlan | None:
    """Return the best plan, or None if memory or batch limits allow none.

    rooms: slots free on each instance, most first. fixed: seconds that a batch costs beside its prompts' work, on
        1, 2, ... |E| instances. max_batch_tokens: tokens of a batch for each of its instances; one longer prompt
        runs alone. min_tokens_per_instance: a batch has no more instances than give each so many. min_efficiency: nor
        more than GREEDY, if it would use less than this share of their time for what fewer could do.
    """
    R, E = len(prompts.lengths), len(rooms)
    if R == 1:
        return plan_one_batch(
            prompts, rooms, fixed, max_batch_tokens, min_tokens_per_instance, objective, min_efficiency
        )
    need, room = _sums(prompts.needs), _sums(rooms)
    # [E, R, R]: by number of instances - 1, i - 1, j
    cost = _costs(prompts, fixed, max_batch_tokens, min_tokens_per_instance, objective, E, min_efficiency)
    slots = need[1:, None] - need[None, :-1]  # [R, R]: D[j, i] by i - 1, j
    E = _enough(cost, slots, rooms)
    f = np.full((E + 1, R + 1), np.inf)
    f[0, 0] = 0.0
    choice = np.zeros((E + 1, R + 1), dtype=np.int64)
    for k in range(1, E + 1):
        candidates = f[:k, None, :-1] + cost[k - 1 :: -1][:k]  # [k, R, R]: l, i - 1, j
        candidates[slots[None] > (room[k] - room[:k])[:, None, None]] = np.inf
        flat = candidates.transpose(1, 0, 2).reshape(R, k * R)
        choice[k, 1:] = flat.argmin(axis=1)
        f[k, 1:] = flat[np.arange(R), choice[k, 1:]]
    best = int(f[1:, R].argmin()) + 1
    if not np.isfinite(f[best, R]):
        return None
    batches = _trace_back(choice, best, R, prompts, fixed)
    return BatchPlan(batches, float(f[best, R]), R * R * E * (E + 1) // 2)


def plan_one_batch(
    prompts: Prompts,
    rooms: Sequence[int],
    fixed: Sequence[float],
    max_batch_tokens: int,
    min_tokens_per_instance: int = 0,
    objective: Objective = "latency",
    min_efficiency: float = 0.0,
) -> BatchPlan | None:
    """Plan all prompts in one batch, on as many instances as are best for it: all that the released code ever plans.

    Arguments as in `plan_batches`.
    """
    R, E = len(prompts.lengths), len(rooms)
    cost = _costs(prompts, fixed, max_batch_tokens, min_tokens_per_instance, objective, E, min_efficiency)[:, R - 1, 0]
    cost[_sums(rooms)[1:] < sum(prompts.needs)] = np.inf
    n = int(cost.argmin()) + 1
    if not np.isfinite(cost[n - 1]):
        return None
    batch = PlannedBatch(0, R, 0, n, fixed[n - 1] + sum(work[n - 1] for work in prompts.work))
    return BatchPlan((batch,), float(cost[n - 1]), E)


def _enough(cost: Floats, slots: Ints, rooms: Sequence[int]) -> int:
    """So many first instances that a best plan is among those that need no others.

    cost: [E, R, R]. slots: [R, R]. Say that all of E' instances have room for r tokens at least, and that a batch of D
    tokens is cheapest on w of the numbers from D / r on. A plan that gives it more than w is no worse with w, wherever
    among the E' these are, and all behind it move to instances with more room. So no batch need have more than w, and
    if the w of no way to cut the prompts add up to more than E', E' instances are enough.
    """
    E, R = len(rooms), len(slots)
    n = np.arange(1, E + 1)[:, None, None]
    possible = np.isfinite(cost).any(axis=0)
    for enough in (1 << k for k in range(4, E.bit_length()) if 1 << k < E):
        least = rooms[enough - 1]
        if not least:
            break
        without = -(-slots // least)  # as many have room wherever they are
        wide = np.where(n >= without, cost, np.inf)
        w = np.where(np.isfinite(wide).any(axis=0), wide.argmin(axis=0) + 1, without - 1)
        w[~possible] = 0
        most = [0]
        for i in range(R):
            most.append(max(most[j] + int(w[i, j]) for j in range(i + 1)))
        if most[R] <= enough:
            return enough
    return E


def _sums(values: Sequence[int]) -> Ints:
    """values[0] + ... + values[i - 1] at i."""
    return np.concatenate(([0], np.cumsum(values, dtype=np.int64)))


def _costs(
    prompts: Prompts,
    fixed: Sequence[float],
    max_batch_tokens: int,
    min_tokens_per_instance: int,
    objective: Objective,
    E: int,
    min_efficiency: float,
) -> Floats:
    """[E, R, R]: what the batch of prompts j to i costs on n instances, at [n - 1, i - 1, j]; infinite if forbidden."""
    R = len(prompts.lengths)
    sums = _sums(prompts.lengths)
    tokens = sums[1:, None] - sums[None, :-1]
    size = np.arange(1, R + 1)[:, None] - np.arange(R)[None, :]
    n = np.arange(1, E + 1)[:, None, None]
    work = np.zeros((E, R + 1))
    np.cumsum(np.asarray(prompts.work, dtype=np.float64)[:, :E].T, axis=1, out=work[:, 1:])
    seconds = work[:, 1:, None] - work[:, None, :-1] + np.asarray(fixed[:E])[:, None, None]
    cost: Floats = seconds * _weights(prompts, objective)
    crowded = (tokens > max_batch_tokens * n) & (size > 1)
    idling = (tokens < min_tokens_per_instance * n) & (n > 1)
    cost[(size < 1) | crowded | idling] = np.inf
    if E > GREEDY:
        spent = n * seconds
        cost[(n > GREEDY) & (min_efficiency * spent > spent.min(axis=0))] = np.inf
    return cost


def _weights(prompts: Prompts, objective: Objective) -> Floats:
    """[R, R]: how often the time of the batch of prompts j to i counts, at [i - 1, j]."""
    lengths = np.asarray(prompts.lengths, dtype=np.float64)
    sums = np.concatenate(([0.0], np.cumsum(np.ones_like(lengths) if objective == "latency" else 1.0 / lengths)))
    weights: Floats = sums[1:, None] - sums[None, :-1]
    return weights


def _trace_back(
    choice: Ints, k: int, R: int, prompts: Prompts, fixed: Sequence[float]
) -> tuple[PlannedBatch, ...]:
    batches = []
    i = R
    while i > 0:
        l, j = divmod(int(choice[k, i]), R)  # noqa: E741  (the paper's names)
        seconds = fixed[k - l - 1] + sum(work[k - l - 1] for work in prompts.work[j:i])
        batches.append(PlannedBatch(j, i, l, k, seconds))
        i, k = j, l
    return tuple(reversed(batches))
