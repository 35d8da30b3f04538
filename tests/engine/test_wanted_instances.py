"""What is wanted of an instance, in an engine whose workers are lost and come back: that it serves, drains, leaves."""

from __future__ import annotations

from typing import Any

import pytest

from longspan.engine.fleet import Purpose
from longspan.errors import RequestError
from longspan.executor.base import LeavingInstance, LostInstance
from tests.engine.model_engine import INSTANCES, Play


def settled(play: Play) -> Play:
    while play.step():
        assert play.core.error is None, play.core.error
    return play


def busy(play: Play) -> int:
    """An instance that runs what has arrived."""
    return next(i for i, worker in enumerate(play.executor.workers) if worker is not None and worker.commands)


WISHES = pytest.mark.parametrize(
    ("purpose", "then"), [("drain", "drained"), ("remove", "removed"), ("restart", "serving")]
)


@WISHES
def test_what_is_wanted_of_an_instance_stands_though_it_is_lost(purpose: Any, then: str) -> None:
    """It comes again, and is emptied: nobody has to ask again."""
    play = Play("elastic_fcfs", 0)
    play.arrive(0)
    instance = busy(play)
    play.core.leave(instance, purpose)
    assert play.states()[instance] == "leaving"
    play.lose(instance)
    play.return_(instance)
    assert settled(play).states()[instance] == then
    assert play.ended == {"r0"} and not play.errors and play.core.fleet.num_losses == 1


@WISHES
def test_so_it_does_though_it_is_lost_when_it_is_empty(
    purpose: Any, then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends by itself before the executor comes to end it."""
    play = Play("elastic_fcfs", 0)
    with monkeypatch.context() as late:
        late.setattr(play.executor, "end", lambda instance, why, *, again: None)
        play.core.leave(1, purpose)
        play.lose(1)
    play.return_(1)
    assert settled(play).states()[1] == then
    assert play.core.fleet.num_losses == (0 if purpose == "restart" else 1)


def test_what_a_machine_wants_of_its_instances_ends_with_it() -> None:
    play = Play("elastic_fcfs", 0)
    play.arrive(0)
    instance = busy(play)
    play.core.on_reply(LeavingInstance(instance))
    assert play.states()[instance] == "leaving"
    play.lose(instance)
    play.return_(instance)
    assert settled(play).states()[instance] == "serving" and play.ended == {"r0"}


def test_one_that_was_removed_and_does_not_come_again_ends_nothing() -> None:
    play = Play("elastic_fcfs", 0)
    play.core.leave(1, "remove")
    settled(play)
    play.core.leave(1, "restart")
    for _ in range(2):
        play.core.on_reply(LostInstance(1, "it does not load", returns=False))
        play.arrive(len(play.got))
        settled(play)
    play.return_(1)
    assert settled(play).states() == ["serving"] * INSTANCES and len(play.ended) == 2 and not play.errors


def test_nobody_serves_where_all_that_are_there_are_drained() -> None:
    play = Play("elastic_fcfs", 0)
    for instance in (1, 2):
        play.core.leave(instance, "drain")
    assert settled(play).core.stalled() is None
    play.lose(0)
    assert "no instance serves" in str(play.core.stalled())
    play.arrive(0)
    play.return_(0)
    assert settled(play).ended == {"r0"} and play.core.stalled() is None


def test_one_that_is_added_is_spoken_of_before_it_is_there() -> None:
    play = Play("elastic_fcfs", 0)
    assert play.core.add_instance() == INSTANCES
    purposes: tuple[Purpose, ...] = ("drain", "remove")
    for purpose in purposes:
        with pytest.raises(RequestError, match="it has been added, and loads"):
            play.core.leave(INSTANCES, purpose)
    play.core.leave(INSTANCES, "restart")
    with pytest.raises(RequestError, match="there are 0 to 3"):
        play.core.leave(INSTANCES + 1, "restart")
    play.return_(INSTANCES)
    assert play.states() == ["serving"] * (INSTANCES + 1)
