"""Step 4, scaling plans (section 5.4): where new KV will live, and on how many instances decode batches go on.

Down: a prefill's KV is kept by the fewest of its instances that have the slots, decided before it runs; the other
instances are free when it is through. Up: a decode batch gets another instance when its slots run out, or when it has
more requests for each master than keep an iteration memory-bound. New KV is spread over the masters as evenly as
possible.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from longspan.core.costs.cost_model import CostModel
from longspan.core.policies.loongserve.survey import Prompt
from longspan.core.policies.parts.prefill_batch import keep_compactly, keep_evenly
from longspan.core.policies.parts.sharing import share_evenly

_MOST_REQUESTS = 1 << 20

ABOUT_AS_FAST = 1.1
"""Times the predicted best: what multi-master decode costs at most where it does not help (figure 14)."""

Kept = dict[str, list[tuple[int, int]]]
"""Request -> (instance, tokens) in token order."""


def fewest_instances(need: int, rooms: Mapping[int, int]) -> list[int]:
    """Return the smallest set with so much room, those with most first."""
    chosen: list[int] = []
    for number in sorted(rooms, key=lambda number: (-rooms[number], number)):
        if need <= 0:
            break
        chosen.append(number)
        need -= rooms[number]
    return chosen


def keep_on_fewest(prompts: Sequence[Prompt], rooms: Mapping[int, int]) -> Kept:
    """Scale down proactively: keep all KV, and headroom for the first tokens to come, on the fewest instances.

    The released code fills one instance to the brim before it takes the next, and so must scale up at once. Here the
    headroom is part of what must fit. Within the set each request is whole if it can be.
    """
    left = {number: rooms[number] for number in fewest_instances(sum(prompt.need for prompt in prompts), rooms)}
    kept: Kept = {}
    for prompt in sorted(prompts, key=lambda prompt: -prompt.tokens):
        kept[prompt.id] = keep_compactly(prompt.tokens, prompt.need - prompt.tokens, left)
    return kept


def keep_everywhere(prompts: Sequence[Prompt], rooms: Mapping[int, int]) -> Kept:
    """Scale nothing down: keep each request's KV on all instances of the prefill, as evenly as their room allows."""
    left = dict(rooms)
    return {prompt.id: keep_evenly(prompt.tokens, left) for prompt in prompts}


def compute_bound_requests(cost_model: CostModel, otherwise: int) -> int:
    """Return the number of decoding requests on one master beyond which an iteration is compute-bound.

    There what the requests add exceeds the fixed cost, which is mostly reading the weights. `otherwise`: for a model
    in which requests add nothing.
    """
    twice = 2.0 * cost_model.decode(0, 0, 1, 1) * (1.0 + 1e-9)
    # Times never fall with the batch, but need not rise at once: the first requests hide behind reading the weights.
    within = bisect_right(range(1, _MOST_REQUESTS + 1), twice, key=lambda batch: cost_model.decode(batch, 0, 1, 1))
    return max(1, within) if within < _MOST_REQUESTS else otherwise


def num_masters_wanted(num_requests: int, per_master: int) -> int:
    """Return as few masters as keep each of them memory-bound."""
    return -(-num_requests // per_master)


def masters_at_home(contexts: Sequence[Mapping[int, int]], free: Mapping[int, int]) -> list[int] | None:
    """Return for each request the instance with most of its KV; None if some would lack the slots.

    contexts: instance -> tokens, of each request.
    """
    masters = [max(context, key=lambda number: (context[number], -number)) for context in contexts]
    load = Counter(masters)
    return masters if all(tokens <= free[number] for number, tokens in load.items()) else None


def best_masters(iteration_s: Callable[[int], float], least: int, most: int) -> int:
    """Return how many masters a group shall have: the fewest with which an iteration is about as fast as can be.

    iteration_s: predicted seconds with so many masters that share evenly. Every master spreads new KV further, so
    another one must be worth it. Numbers are tried by doubling.
    """
    numbers = [least]
    while numbers[-1] < most:
        numbers.append(min(most, 2 * numbers[-1]))
    times = [iteration_s(number) for number in numbers]
    good = ABOUT_AS_FAST * min(times)
    return next(number for number, seconds in zip(numbers, times, strict=True) if seconds <= good)


def share_among_masters(
    num_requests: int, free: Mapping[int, int], held: Mapping[int, int], masters: int
) -> dict[int, int]:
    """Return master -> tokens that it computes and keeps; as even as their free slots allow.

    free: slots of each instance of the group, enough for all together. held: KV of the batch that each has; the
    masters are those with most. More than `masters` of them if those lack the slots.
    """
    able = sorted((number for number in free if free[number] > 0), key=lambda number: (-held.get(number, 0), number))
    while sum(min(free[number], num_requests) for number in able[:masters]) < num_requests:
        masters += 1
    shares = share_evenly(num_requests, [free[number] for number in able[:masters]])
    return {number: share for number, share in zip(able, shares, strict=False) if share}
