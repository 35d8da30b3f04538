"""Which episodes a profile and its check consist of, cheap ones first.

Totals of tokens grow by powers of four up to what fits. Each total is taken as one prompt (a long one's last tokens as
small chunks), as batches of prompts, and as one prompt in chunks, whose later ones meet context; what was prefilled is
decoded, and migrated. Some iterations have both chunks and decodes: the simulator needs them, the cost model does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest

from longspan.config import SchedulerConfig
from longspan.core.costs.episode import Episode, Iterate, Move, Step

_EVERY = 16  # instances
_SHORTEST = 16
_TAIL = (128, 32)  # small chunks at the end of a prompt, as policies cut them that mix chunks with decodes
_SHORTEST_WITH_TAIL = 1024
_GROWTH = 4
_MOST_DECODES = 64
_MANY_DECODES = 4
_DECODE_TIMES = 4  # the first of them does not count
_OUTPUTS = 32  # more than any request generates

Group = tuple[Episode, ...]
"""The same episode on one, two, ... instances, as far as it fits."""


def numbers_measured(num_instances: int) -> list[int]:
    """Return numbers of instances: all up to _EVERY, then each a quarter more than the one before, and all together.

    What lies between, `fit_cost_model` interpolates; a thousand instances would take forever to measure one by one.
    """
    numbers = list(range(1, min(num_instances, _EVERY) + 1))
    while numbers[-1] < num_instances:
        numbers.append(min(num_instances, numbers[-1] + numbers[-1] // 4))
    return numbers


def fit_groups(config: SchedulerConfig, max_model_len: int) -> list[Group]:
    return _groups(config, max_model_len, _fit_episodes)


def check_groups(config: SchedulerConfig, max_model_len: int) -> list[Group]:
    """Return lengths and batches that `fit_groups` does not have."""
    return _groups(config, max_model_len, _check_episodes)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an episode runs: on so many of all instances, with room for `largest` tokens."""

    instances: int
    of: int
    largest: int

    @property
    def smallest(self) -> int:
        """Enough for a batch with a request for each master."""
        return self.shortest * max(2, self.of)

    @property
    def shortest(self) -> int:
        """Tokens of a prompt in a batch: each instance keeps some of it."""
        return max(_SHORTEST, self.of)


def _groups(
    config: SchedulerConfig, max_model_len: int, episodes: Callable[[_Place], Iterator[Episode]]
) -> list[Group]:
    rows = []
    for instances in numbers_measured(config.num_instances):
        # The first instance keeps most of what is generated; in small pools that is more than the prompts.
        room = max(instances * (config.kv_tokens - _MOST_DECODES * _OUTPUTS), config.kv_tokens // 4)
        largest = max(1, min(max_model_len - _OUTPUTS, room))
        rows.append(list(episodes(_Place(instances, config.num_instances, largest))))
    return [tuple(e for e in group if e is not None) for group in zip_longest(*rows)]


def _fit_episodes(place: _Place) -> Iterator[Episode]:
    for total in _totals(place.smallest, place.largest):
        tail = _TAIL if total >= _SHORTEST_WITH_TAIL else ()
        yield _one_prompt((total - sum(tail), *tail), place)
        many = min(_MOST_DECODES, total // place.shortest)
        for requests in sorted({max(place.of, many // 16), many} - {0, 1}):  # some of long context, many of short
            yield _batch(total, requests, place)
        if total >= 256:
            yield _one_prompt(_split(total, 4), place)
            yield _mixed((total - sum(_TAIL), *_TAIL), max(2, place.of), place)


def _check_episodes(place: _Place) -> Iterator[Episode]:
    for total in _totals(3 * place.smallest // 2, 3 * place.largest // 4):
        yield _one_prompt((total,), place)
        yield _mixed(_split(total, 2), min(8, max(1, total // (2 * place.shortest))), place)
        if total >= 12 * place.shortest:
            yield _batch(total, 12, place)
            yield _one_prompt(_split(total, 3), place)


def _totals(smallest: int, largest: int) -> Iterator[int]:
    total = smallest
    while total < largest:
        yield total
        total *= _GROWTH
    yield largest


def _one_prompt(chunks: Sequence[int], place: _Place) -> Episode:
    prefills = tuple(Iterate(chunks=((0, size),)) for size in chunks)
    can_move = place.instances == 1 < place.of
    moves: tuple[Step, ...] = (Move(0, source=0, target=1), Move(0, source=1, target=0)) if can_move else ()
    return Episode((sum(chunks),), place.instances, (*prefills, *moves, _decode(1, masters=1)))


def _batch(total: int, requests: int, place: _Place) -> Episode:
    """All prompts in one batch, then decodes of all, and of fewer, by one master and by all.

    Not of so few that it matters that these iterations are not queued ahead, since the others stand still meanwhile.
    """
    prompts = _split(total, requests)
    steps: list[Step] = [Iterate(chunks=tuple(enumerate(prompts)))]
    for count in sorted({requests, *(part for part in (requests // 4, requests // 2) if part >= _MANY_DECODES)}):
        steps += [_decode(count, masters) for masters in sorted({1, place.instances}) if masters <= count]
    return Episode(prompts, place.instances, tuple(steps))


def _mixed(chunks: Sequence[int], others: int, place: _Place) -> Episode:
    """Some short prompts; then another in chunks, each together with a decode of all the others."""
    decodes = tuple(range(others))
    return Episode(
        (*[place.shortest] * others, sum(chunks)),
        place.instances,
        (
            Iterate(chunks=tuple((request, place.shortest) for request in decodes)),
            *(Iterate(chunks=((others, size),), decodes=decodes) for size in chunks),
        ),
    )


def _decode(requests: int, masters: int) -> Iterate:
    return Iterate(decodes=tuple(range(requests)), masters=masters, times=_DECODE_TIMES)


def _split(tokens: int, parts: int) -> tuple[int, ...]:
    bounds = [tokens * part // parts for part in range(parts + 1)]
    return tuple(end - start for start, end in pairwise(bounds))
