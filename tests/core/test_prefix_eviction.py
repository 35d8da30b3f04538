"""What goes when slots are needed: what is worth least, from its end, and nothing that anybody refers to."""

from __future__ import annotations

from longspan.config import SchedulerConfig
from longspan.core.actions import FreeKV, RunBatch
from longspan.core.events import BatchCompleted, TokenOutput

from .cost_models import scaling_model
from .driver import Driver

BLOCK = 10


def driver(kv_tokens: int) -> Driver:
    config = SchedulerConfig(
        policy="elastic_fcfs", num_instances=1, kv_tokens=kv_tokens, prefix_block=BLOCK, decode_headroom=0
    )
    return Driver(config, cost_model=scaling_model(1, per_token=1e-4, per_pair=1e-6))


def prompt(number: int, tokens: int) -> list[int]:
    return list(range(1000 * number, 1000 * number + tokens))


def ask(d: Driver, tokens: list[int]) -> int:
    """How many tokens it finds."""
    before = len(d.log)
    d.arrive(tokens, 1)
    d.finish()
    runs = [action for _, _, actions in d.log[before:] for action in actions if isinstance(action, RunBatch)]
    return runs[0].segments[0].start


def left(d: Driver) -> list[int]:
    """Tokens of each residence that is cached, in the order in which they began."""
    return [node.residence.end - node.residence.begin for node in d.scheduler._ledger.prefixes.nodes.values()]


def test_it_goes_from_the_end_in_whole_blocks_and_only_as_much_as_is_needed() -> None:
    d = driver(100)
    ask(d, prompt(1, 80))
    assert left(d) == [80]
    ask(d, prompt(2, 35))  # 20 slots are free, 15 are lacking
    frees = [action for _, _, actions in d.log for action in actions if isinstance(action, FreeKV)]
    assert FreeKV(0, (0,), ((60, 80),)) in frees
    assert left(d) == [60, 30]
    assert ask(d, prompt(1, 80)) == 60


def test_what_is_asked_for_often_stays() -> None:
    d = driver(100)
    for _ in range(4):
        ask(d, prompt(1, 41))
    ask(d, prompt(2, 41))
    ask(d, prompt(3, 41))  # needs slots: the second is newer than the first, but was asked for once
    assert ask(d, prompt(1, 41)) == 40


def test_what_is_asked_for_again_and_again_is_known_by_that_though_all_of_it_was_evicted() -> None:
    d = driver(100)
    for number in range(2, 6):
        assert ask(d, prompt(1, 41)) == 0
        ask(d, prompt(number, 99))  # takes all slots
    for number in (1, 6, 7):  # the last one needs slots: the first is older than the second
        ask(d, prompt(number, 41))
    assert ask(d, prompt(1, 41)) == 40


def test_what_nobody_asks_for_any_more_goes_in_the_end() -> None:
    d = driver(100)
    for _ in range(4):
        ask(d, prompt(1, 41))
    for number in range(2, 30):
        ask(d, prompt(number, 41))
    assert ask(d, prompt(1, 41)) == 0


def test_the_dearer_stays() -> None:
    """A token at the end of a long prompt takes longer to compute again than one of a short prompt."""
    d = driver(300)
    ask(d, prompt(1, 201))
    ask(d, prompt(2, 51))
    ask(d, prompt(3, 91))
    assert ask(d, prompt(1, 201)) == 200


def test_what_a_running_request_refers_to_stays() -> None:
    d = driver(100)
    ask(d, prompt(1, 51))
    d.arrive([*prompt(1, 50), 7, 8], 20, "running")
    d.arrive(prompt(2, 60), 1, "waits")
    for _ in range(5):
        d.complete()
    assert d.alive() == ["running", "waits"]
    d.finish()
    assert d.lives["waits"].ended == "length"


def test_of_idle_instances_one_is_chosen_where_what_goes_is_worth_least() -> None:
    config = SchedulerConfig(policy="longspan", num_instances=2, kv_tokens=100, prefix_block=BLOCK, decode_headroom=0)
    d = Driver(config, cost_model=scaling_model(2, per_token=1e-4, per_pair=1e-6))

    def runs_on(number: int) -> tuple[int, ...]:
        before = len(d.log)
        ask(d, prompt(number, 61))
        runs = [action for _, _, actions in d.log[before:] for action in actions if isinstance(action, RunBatch)]
        return runs[0].group

    assert runs_on(1) == (0,)
    assert runs_on(2) == (1,)  # it is empty
    assert runs_on(1) == (0,)
    assert runs_on(3) == (1,)  # the second prompt was asked for once
    assert (runs_on(1), runs_on(3)) == ((0,), (1,))


def test_a_fork_goes_before_what_it_goes_on_from() -> None:
    d = driver(100)
    ask(d, prompt(1, 51))
    ask(d, [*prompt(1, 20), *prompt(2, 31)])
    assert left(d) == [50, 30]
    for number in range(3, 6):
        ask(d, prompt(number, 90))
    d.scheduler.check_invariants()
    assert ask(d, prompt(5, 90)) == 80


def test_what_a_request_had_that_failed_is_not_found_again() -> None:
    """Its KV may be as wrong as its logits; what others use stays with them."""
    d = driver(300)
    ask(d, prompt(1, 41))
    d.arrive([*prompt(1, 40), *prompt(2, 41)], 5, "failing")
    work = d.model.started[0]
    d.model.complete(work)
    d.lives["failing"].end("error")
    d.handle(BatchCompleted(work.batch_id, (TokenOutput("failing", "abort"),)))
    assert left(d) == []
    assert ask(d, [*prompt(1, 40), *prompt(2, 41)]) == 0
