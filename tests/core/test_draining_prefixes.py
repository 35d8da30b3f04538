"""An instance leaves: what is cached there moves to others, what is worth most first, as far as they have room for it.

What requests have moves as ever (test_losses.py); the worker model knows for which tokens each slot was computed.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.config import SchedulerConfig
from longspan.core.actions import InstanceDrained, MigrateKV, RunBatch
from longspan.core.events import RequestArrived
from longspan.core.fleet import carrying
from longspan.prefix_keys import PrefixHasher

from .cost_models import cost_models, scaling_model
from .driver import Driver
from .settings import EVERY_POLICY
from .test_prefix_properties import Talk, run, talks

BLOCK = 4


def driver(policy: str = "elastic_fcfs", instances: int = 3, kv_tokens: int = 120) -> Driver:
    config = SchedulerConfig(
        policy=policy, num_instances=instances, kv_tokens=kv_tokens, prefix_block=BLOCK, overload="off"
    )
    return Driver(config, cost_model=scaling_model(instances + 1))


def prompt(number: int, tokens: int) -> list[int]:
    return list(range(1000 * number, 1000 * number + tokens))


def ask(d: Driver, tokens: list[int]) -> int:
    """Returns how many of them were there."""
    place, name = len(d.log), f"r{len(d.lives)}"
    d.arrive(tokens, 1, name)
    while d.lives[name].ended is None:
        d.complete()
    segments = [segment for action in since(d, place) if isinstance(action, RunBatch) for segment in action.segments]
    return next(segment.start for segment in segments if segment.request_id == name)


def home_of(d: Driver, tokens: list[int]) -> int:
    """Have them computed; returns where, if that is one instance."""
    before = cached(d)
    ask(d, tokens)
    (home,) = (number for number, count in enumerate(cached(d)) if count > before[number])
    return home


def since(d: Driver, place: int) -> list[object]:
    return [action for _, _, actions in d.log[place:] for action in actions]


def cached(d: Driver) -> list[int]:
    return list(d.scheduler.stats().kv_tokens_cached)


def known(d: Driver, tokens: list[int]) -> int:
    hasher = PrefixHasher(b"of the tests", d.config.prefix_block)
    keys = hasher.push(b"".join(token.to_bytes(4, "little") for token in tokens))
    return d.scheduler.cached(RequestArrived("?", len(tokens) + 1, 1, prefix_keys=keys))  # type: ignore[union-attr]


def drain(d: Driver, instance: int) -> list[MigrateKV]:
    """Returns what moved."""
    place = len(d.log)
    d.leave(instance)
    while instance not in d.drained:
        d.complete()
    return [action for action in since(d, place) if isinstance(action, MigrateKV)]


@pytest.mark.parametrize("policy", EVERY_POLICY)
def test_what_was_cached_is_found_on_the_others(policy: str) -> None:
    d = driver(policy)
    document = prompt(1, 40)
    ask(d, document)
    ask(d, [*prompt(2, 10), *document[:24]])
    before = cached(d)
    home = before.index(max(before))
    moves = drain(d, home)
    assert moves and all((move.request_id, move.source) == ("", home) for move in moves)
    assert cached(d)[home] == 0 and sum(cached(d)) == sum(before)
    assert known(d, document) == 40
    d.lose(home)
    d.join(home)
    if policy in ("elastic_fcfs", "longspan", "medha", "static_tp"):  # they go where it is
        assert ask(d, [*document, 7]) == 40


def test_the_dearest_stays_where_there_is_no_room_for_all() -> None:
    d = driver("longspan", instances=2, kv_tokens=64)
    often, once, other = prompt(1, 24), prompt(2, 24), prompt(3, 48)
    home = home_of(d, often)
    assert home_of(d, other) != home == home_of(d, once)
    for _ in range(4):
        assert ask(d, [*often, 5]) == 24
    drain(d, home)
    assert known(d, often) == 24
    assert known(d, once) + known(d, other) == 64 - 24


def test_what_is_dearer_elsewhere_is_not_evicted_for_it() -> None:
    d = driver("longspan", instances=2, kv_tokens=64)
    often, once = prompt(1, 60), prompt(2, 40)
    home = home_of(d, often)
    for _ in range(4):
        assert ask(d, [*often, 5]) == 60
    assert home_of(d, once) != home
    drain(d, 1 - home)
    assert (known(d, often), known(d, once)) == (60, 4)


def test_what_goes_on_from_a_prefix_follows_it_and_needs_no_room_of_its_own_elsewhere() -> None:
    """It is moved along the tree: a prefix before what goes on from it, and each block once."""
    d = driver(kv_tokens=200)
    document = prompt(1, 40)
    home = home_of(d, document)
    for number in (2, 3):
        assert ask(d, [*document[:20], *prompt(number, 20)]) == 20
    assert cached(d)[home] == 80
    moves = drain(d, home)
    assert sum(move.num_tokens for move in moves) == 80
    assert len({move.target for move in moves}) == 1, "they stay together"
    assert [known(d, [*document[:20], *prompt(number, 20)]) for number in (2, 3)] == [40, 40]


def test_what_others_have_too_is_evicted() -> None:
    d = driver("vllm", instances=2, kv_tokens=200)
    document = prompt(1, 40)
    for name in ("a", "b"):  # at once, each on an instance of its own
        d.arrive(document, 1, name)
    d.finish()
    assert cached(d) == [40, 40]
    assert drain(d, 0) == []
    assert cached(d) == [0, 40]


@pytest.mark.parametrize("policy", ["elastic_fcfs", "vllm", "longspan", "medha"])
def test_streams_go_on_between_any_two_moves(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrying, "MOST_TOKENS", 2 * BLOCK)
    d = driver(policy, instances=2, kv_tokens=400)
    homes = [home_of(d, prompt(number, 40)) for number in range(1, 5)]
    for number in range(4):
        d.arrive(prompt(10 + number, 6), 100, f"stream {number}")
    while any(d.lives[f"stream {number}"].outputs < 2 for number in range(4)):
        d.complete()
    moves = place = 0
    outputs = {name: life.outputs for name, life in d.lives.items() if life.ended is None}
    d.leave(homes[0])
    while homes[0] not in d.drained:
        place = len(d.log)
        d.complete()
        for action in since(d, place):
            if isinstance(action, MigrateKV) and not action.request_id:
                moves += 1
    more = [d.lives[name].outputs - before for name, before in outputs.items()]
    assert moves >= 5 and min(more) >= moves - 2
    d.finish()
    assert {life.outputs for name, life in d.lives.items() if name.startswith("stream")} == {100}


def moving(instances: int) -> tuple[Driver, MigrateKV]:
    """What is cached is on its way, and nothing else is going on."""
    d = driver(instances=instances)
    home = home_of(d, prompt(1, 40))
    d.leave(home)
    (move,) = d.model.started
    assert isinstance(move, MigrateKV) and move.source == home
    assert not d.scheduler.idle()
    return d, move


def test_where_it_goes_to_is_lost_meanwhile() -> None:
    d, move = moving(3)
    d.lose(move.target)
    (again,) = d.model.started
    assert isinstance(again, MigrateKV) and again.target not in (move.source, move.target)
    d.finish()
    assert known(d, prompt(1, 40)) == 40


def test_where_it_comes_from_is_lost_meanwhile() -> None:
    d, move = moving(3)
    d.lose(move.source)
    assert d.model.started == [] and known(d, prompt(1, 40)) == 0 and sum(cached(d)) == 0
    assert d.scheduler.idle()
    assert ask(d, prompt(1, 40)) == 0


def test_without_another_to_take_it_the_last_one_is_emptied_at_once() -> None:
    d, move = moving(2)
    d.lose(move.target, returns=False)
    assert move.source in d.drained and sum(cached(d)) == 0


def test_who_asks_for_it_meanwhile_finds_it_where_it_goes_or_computes_it() -> None:
    d, move = moving(3)
    d.arrive([*prompt(1, 40), 5], 3, "meanwhile")
    d.finish()
    groups = [work.group for work in since(d, 0) if isinstance(work, RunBatch)
              for segment in work.segments if segment.request_id == "meanwhile"]  # fmt: skip
    assert groups and all(move.source not in group for group in groups)
    assert d.lives["meanwhile"].ended == "length"


@settings(max_examples=60)
@given(talks(), st.data())
def test_where_others_have_room_nothing_is_lost(talk: Talk, data: st.DataObject) -> None:
    d = Driver(talk.config, seed=talk.seed, cost_model=data.draw(cost_models()))
    run(d, talk)
    instance = data.draw(st.integers(0, talk.config.num_instances - 1))
    room = sum(talk.config.kv_tokens - tokens for number, tokens in enumerate(cached(d)) if number != instance)
    before = {tuple(tokens): known(d, tokens) for tokens in d.model.tokens.values()}
    fits = room >= cached(d)[instance] + talk.config.num_instances * talk.config.prefix_block
    actions = d.leave(instance)
    d.finish()
    assert any(isinstance(action, InstanceDrained) for action in [*actions, *since(d, 0)])
    after = {tokens: known(d, list(tokens)) for tokens in before}
    assert after == before if fits else all(after[tokens] <= count for tokens, count in before.items())
