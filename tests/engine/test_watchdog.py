"""The watchdog: when work should have ended, and what it tells."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from longspan.core.actions import KVRange, MigrateKV, RunBatch, Segment
from longspan.engine.watchdog import SECONDS_PER_TOKEN, TIMES_PREDICTED, Watchdog
from tests.core.cost_models import scaling_model

SLACK_S = 60.0


def batch(number: int, group: tuple[int, ...] = (0,), length: int = 8, start: int = 0) -> RunBatch:
    store = (KVRange(group[0], start, start + length),)
    context = ((group[0], start),) if start else ()
    return RunBatch(number, group, (Segment("r", start, length, group, store, context),))


def test_work_is_late_after_its_slack_and_its_share() -> None:
    dog = Watchdog(None, SLACK_S)
    dog.begin(batch(7, (0, 1)), now=100.0)
    share_s = 8 * SECONDS_PER_TOKEN
    assert dog.overdue(100.0 + SLACK_S + share_s) is None
    told = dog.overdue(101.0 + SLACK_S + share_s)
    assert told is not None and "batch 7 on instances 0, 1 has not ended after 63 s" in told
    dog.end("batch", 7)
    assert dog.overdue(1e9) is None


def test_what_a_batch_may_take_grows_with_its_tokens_and_their_context() -> None:
    times = []
    for length, start in ((1, 0), (1, 1_000_000), (100_000, 0), (100_000, 1_000_000)):
        dog = Watchdog(None, SLACK_S)
        dog.begin(batch(0, length=length, start=start), now=0.0)
        times.append(next(at for at in range(0, 10_000_000, 5) if dog.overdue(float(at)) is not None))
    assert times == sorted(set(times))
    assert times[-1] > 1_000_000  # a hundred thousand tokens behind a million: nobody knows this machine


def test_a_cost_model_says_what_a_batch_may_take() -> None:
    model = scaling_model(2)
    dog = Watchdog(model, SLACK_S)
    dog.begin(batch(0, length=4096), now=0.0)
    due = SLACK_S + TIMES_PREDICTED * model.work(4096, 0, 1) + TIMES_PREDICTED * model.prefill_coefficients[0].fixed
    assert dog.overdue(due * 0.999) is None
    assert dog.overdue(due * 1.001) is not None
    dog.end("batch", 0)
    dog.begin(MigrateKV(3, "r", 0, 1, ((0, 100),)), now=0.0)
    assert dog.overdue(SLACK_S + TIMES_PREDICTED * model.migration(100) + 1.0) is not None


@given(shares=st.lists(st.integers(1, 100), min_size=1, max_size=6))
def test_work_behind_other_work_has_its_time_too(shares: list[int]) -> None:
    """A row of batches on one instance, each of which takes all the time that it may, is never late."""
    dog = Watchdog(None, SLACK_S)
    for number, length in enumerate(shares):
        dog.begin(batch(number, length=length), now=0.0)
    now = 0.0
    for number, length in enumerate(shares):
        now += SLACK_S + length * (SECONDS_PER_TOKEN + 1e-9)
        assert dog.overdue(now) is None
        dog.end("batch", number)


def test_other_instances_do_not_wait() -> None:
    dog = Watchdog(None, SLACK_S)
    dog.begin(batch(0, (0,), length=100_000), now=0.0)
    dog.begin(batch(1, (1,), length=1), now=0.0)
    told = dog.overdue(SLACK_S + 1.0)
    assert told is not None and told.startswith("batch 1 on instances 1 ")
