"""A prefix that too many wait for on one instance is copied to another that has time: both have it from then on.

What is copied, and freed, is what it seems to be: the worker model knows for which tokens each slot was computed.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from longspan.config import SchedulerConfig
from longspan.core.actions import FreeKV, MigrateKV, RunBatch
from longspan.core.prefixes import copying

from .cost_models import scaling_model
from .driver import Driver
from .random_policy import RandomPolicy
from .settings import with_options
from .test_prefix_properties import Talk, run

DOCUMENT = list(range(4000))


def driver(policy: str = "medha", *, per_moved: float = 1.3e-6, instances: int = 2, **options: Any) -> Driver:
    config = SchedulerConfig(
        policy=with_options(policy, **options), num_instances=instances, kv_tokens=20_000, prefix_block=16,
        overload="off", max_batch_tokens=512,
    )
    return Driver(config, cost_model=scaling_model(instances, per_token=2e-4, migration_per_token=per_moved))


def question(number: int) -> list[int]:
    return [*DOCUMENT, *range(10_000 + 200 * number, 10_200 + 200 * number)]


def many(d: Driver, count: int = 40) -> None:
    """All ask about a document at once, which one has been answered about before."""
    d.arrive([*DOCUMENT, 5], 1, "first")
    d.finish()
    for number in range(count):
        d.arrive(question(number), 2, f"r{number}")


def acts(d: Driver) -> list[object]:
    return [action for _, _, actions in d.log for action in actions]


def copies(d: Driver) -> list[MigrateKV]:
    return [action for action in acts(d) if isinstance(action, MigrateKV) and action.is_copy]


def computed_again(d: Driver) -> int:
    segments = [segment for action in acts(d) if isinstance(action, RunBatch) for segment in action.segments]
    return sum([max(0, min(each.end, len(DOCUMENT)) - each.start) for each in segments if each.request_id != "first"])


@pytest.mark.parametrize("policy", ["medha", "edf", "srpt"])
def test_where_a_copy_costs_little_nobody_computes_it_again(policy: str) -> None:
    d = driver(policy)
    many(d)
    d.finish()
    (copy,) = copies(d)
    assert copy.ranges == ((0, len(DOCUMENT)),)
    assert computed_again(d) == 0
    begun = [action.group for action in acts(d) if isinstance(action, RunBatch)]
    assert min(begun.count((number,)) for number in (0, 1)) > 5


def test_where_it_costs_more_than_to_compute_it_again_nothing_is_copied() -> None:
    d = driver(per_moved=1e-3)
    many(d)
    d.finish()
    assert not copies(d) and computed_again(d) >= len(DOCUMENT) - 16


def test_who_need_not_wait_long_does_not_copy() -> None:
    d = driver(per_moved=1e-4)
    d.arrive([*DOCUMENT, 5], 1, "first")
    d.finish()
    for number in range(2):
        d.arrive(question(number), 2, f"r{number}")
    d.finish()
    assert not copies(d) and computed_again(d) == 0


def test_a_long_one_is_copied_piece_by_piece_and_the_source_goes_on_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "MOST_TOKENS", 1000)
    d = driver()
    many(d, 60)
    d.finish()
    pieces = copies(d)
    assert [piece.ranges for piece in pieces] == [((start, start + 992),) for start in range(0, 3968, 992)]
    kinds = [("copy" if isinstance(action, MigrateKV) else action.group) for action in acts(d)
             if isinstance(action, RunBatch | MigrateKV)]  # fmt: skip
    places = [place for place, kind in enumerate(kinds) if kind == "copy"]
    source = (pieces[0].source,)
    assert all([source in kinds[one:other] for one, other in pairwise(places)])
    assert computed_again(d) <= 2 * (len(DOCUMENT) - 3968), "of what is left a copy saves less than an iteration"


def under_way(d: Driver) -> MigrateKV:
    many(d)
    while not copies(d):
        d.complete()
    return copies(d)[0]


def test_its_target_is_lost_meanwhile() -> None:
    d = driver(instances=3)
    copy = under_way(d)
    d.lose(copy.target)
    d.finish()
    assert computed_again(d) == 0, "the source has it still"


def test_its_source_is_lost_meanwhile() -> None:
    d = driver(instances=3)
    copy = under_way(d)
    d.lose(copy.source)
    d.finish()
    assert {life.ended for life in d.lives.values()} == {"length"}


def test_both_are_evicted_each_for_itself() -> None:
    d = driver()
    many(d)
    d.finish()
    (copy,) = copies(d)
    before = len(d.log)
    for number in range(10):
        d.arrive(list(range(200_000 + 4000 * number, 204_000 + 4000 * number)), 1)
    d.finish()
    freed = [action for _, _, actions in d.log[before:] for action in actions if isinstance(action, FreeKV)]
    assert any(action.residence == copy.into and action.instances == (copy.target,) for action in freed)
    assert any(action.residence == copy.residence and action.instances == (copy.source,) for action in freed)


def test_an_arbitrary_policy_does_copy() -> None:
    """The property tests do, or they would show nothing of it."""
    config = SchedulerConfig(num_instances=3, kv_tokens=60, prefix_block=2)
    count = 0
    for seed in range(20):
        d = Driver(config, RandomPolicy(seed), seed=seed)
        run(d, Talk(config, 14, 50, 0.2, 0.2, 0.05, 0.2, seed))
        count += len(copies(d))
    assert count > 5
