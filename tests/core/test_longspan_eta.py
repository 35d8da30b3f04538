"""The policy `longspan`: when a request will get its first token, and what comes of such predictions."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.core.estimate import Estimate
from longspan.core.policies.chunked.priority import Floats
from longspan.core.policies.longspan.calibration import Calibration, Kind
from longspan.core.policies.longspan.eta import Forecast, Kin, Kinds, Unserved, time_to_first_token
from longspan.core.policies.longspan.load import ArrivingLoad, ServiceRate
from longspan.core.policies.longspan.policy import Longspan

from .driver import Driver
from .longspan import Run, arrival, plain, played
from .settings import configured

MINE = Unserved(left_s=2.0, work_s=2.0, key=24.0, due=20.0, tag=5.0)
times = st.floats(0.01, 20.0)
unserved = st.builds(Unserved, times, times, times, times, times)


def columns(others: Sequence[Unserved]) -> Floats:
    return np.array(others, dtype=float).reshape(-1, 5).T


def eta(
    mine: Unserved, others: Sequence[Unserved], coming: Sequence[Kin] = (), rate: float = 1.0, wait: float = 0.5
) -> float:
    return time_to_first_token(mine, columns(others), coming, rate, wait, 10.0).seconds


def ahead(work_s: float, **changes: float) -> Unserved:
    return Unserved(work_s, work_s, key=15.0, due=100.0, tag=9.0)._replace(**changes)


def test_by_hand() -> None:
    """At 10 s; half a second until an iteration ends, 2 s of its own."""
    assert eta(MINE, []) == 2.5
    assert eta(MINE, [ahead(3.0), ahead(1.0)]) == 6.5
    assert eta(MINE, [ahead(3.0, key=24.0), ahead(3.0, key=30.0)]) == 2.5  # behind it
    assert eta(MINE, [ahead(3.0), ahead(1.0)], rate=2.0) == 4.5
    # The second cannot be in time behind the first, and lets it pass.
    assert eta(MINE, [ahead(3.0), ahead(1.0, key=16.0, due=14.0)]) == 5.5
    # It is late itself, behind 8 s of work: then that goes ahead, too, for its tag is lower.
    assert eta(MINE, [ahead(8.0), ahead(1.0, key=16.0, due=14.0, tag=4.0)]) == 11.5
    assert eta(MINE, [ahead(8.0), ahead(1.0, key=16.0, due=14.0, tag=6.0)]) == 10.5


def test_who_comes_overtakes() -> None:
    """A tenth of the time goes to newcomers who come until 4 s before its key: x = 2.5 + min(x, 10) / 10."""
    assert eta(MINE, [], [Kin(0.1, 4.0)]) == pytest.approx(2.5 / 0.9, rel=2e-3)
    assert eta(MINE._replace(left_s=9.0, due=40.0), [], [Kin(0.1, 4.0)]) == pytest.approx(9.5 + 1.0, rel=2e-3)
    assert eta(MINE, [], [Kin(0.1, 20.0)]) == 2.5
    late = MINE._replace(due=11.0)  # all do
    assert eta(late, [], [Kin(0.1, 20.0)]) == pytest.approx(0.5 + 2.0 / 0.9, rel=2e-3)


@given(
    unserved, st.lists(unserved, max_size=12), st.lists(st.builds(Kin, times, times), max_size=4), times,
    st.floats(0.0, 2.0), unserved,
)  # fmt: skip
def test_a_queue_never_helps(
    mine: Unserved, others: list[Unserved], coming: list[Kin], rate: float, wait: float, other: Unserved
) -> None:
    """It takes no less than on an idle machine, ends, and is finite, also where more work comes than can be served.
    One more ahead that competes, and makes nobody else late, makes it no sooner."""
    found = eta(mine, others, coming, rate, wait)
    assert wait + mine.left_s <= found * (1 + 1e-9) and math.isfinite(found)
    patient = [one._replace(due=1e9) for one in others]
    mine = mine._replace(due=1e9)
    assert eta(mine, [*patient, other._replace(due=1e9)], coming, rate, wait) >= eta(mine, patient, coming, rate, wait)


@given(unserved, st.lists(unserved, max_size=12), st.randoms(use_true_random=False))
def test_the_order_of_the_queue_does_not_matter(mine: Unserved, others: list[Unserved], rng: random.Random) -> None:
    shuffled = rng.sample(others, len(others))
    if len({one.key for one in others}) == len(others):
        assert eta(mine, shuffled) == pytest.approx(eta(mine, others))


# what arrives, and what is served


def test_what_arrives_is_known_by_size_and_decays() -> None:
    kinds = Kinds()
    for second in range(400):
        kinds.arrive(float(second), 0.1, 7.0)
        if second % 10 == 0:
            kinds.arrive(float(second), 3.0, 9.0)
    short, long = kinds.now(400.0)
    assert short.work == pytest.approx(0.1, rel=0.02) and short.reach_s == 7.0
    assert long.work == pytest.approx(0.3, rel=0.02) and long.reach_s == 9.0
    assert sum(kin.work for kin in kinds.now(2400.0)) < 0.02 * 0.4


@given(st.lists(st.tuples(st.floats(0.0, 100.0), st.floats(0.01, 5.0)), min_size=1, max_size=20), st.data())
def test_asking_what_arrives_changes_nothing(drawn: list[tuple[float, float]], data: st.DataObject) -> None:
    asked, unasked, now = ArrivingLoad(50.0), ArrivingLoad(50.0), -1e6
    assert asked.rate(now) == asked.work(now) == 0.0
    for after_s, work_s in drawn:
        if data.draw(st.booleans()):
            asked.work(now + after_s / 3)
        now += after_s
        for load in (asked, unasked):
            load.arrive(now, work_s)
    assert asked.work(now) == unasked.work(now)
    assert asked.rate(now) == unasked.rate(now)


def test_what_is_served_while_there_is_a_backlog() -> None:
    """Of four instances, which do two seconds of work in one; time without a backlog, and its work, do not count."""
    rate, now = ServiceRate(4.0), 0.0
    assert rate() == 4.0
    for step in range(6000):
        now += 0.1
        is_behind = step % 600 < 300
        rate.note(0.2 if is_behind else 0.01)
        rate.advance(now, (step + 1) % 600 < 300)
    assert rate() == pytest.approx(2.0, rel=0.15)
    rate.advance(now, True)
    for _ in range(20000):
        now += 0.1
        rate.note(0.001)
        rate.advance(now, True)
    assert rate() == pytest.approx(0.2 * 4.0)


@pytest.mark.parametrize(("instances", "pp"), [(1, 1), (4, 1), (2, 2)])
def test_a_fleet_serves_what_it_can(instances: int, pp: int) -> None:
    """A tenth or so is lost to decodes, more where a pipeline is empty at times; one that is not always busy seems no
    slower than one that is."""
    for load in (0.8, 1.5):
        rates: list[float] = []

        def look(run: Run, now: float, found: list[float] = rates) -> None:
            assert isinstance(run.scheduler.policy, Longspan)
            found.append(run.scheduler.policy._rate())

        rng, at, arrivals = random.Random(5), 0.0, []
        while at < 20.0:
            at += rng.expovariate(load * instances / 0.22)
            arrivals.append(arrival(at, f"r{len(arrivals)}", rng.randint(100, 300), 2))
        played(arrivals, plain(instances), num_instances=instances, pp=pp, overload="off", look=look,
               max_waiting=10**6)  # fmt: skip
        assert 0.7 * instances < rates[-1] < 1.25 * instances


# calibration


KIND, OTHER, THIRD = (Kind(n, n) for n in range(3))


def forecast(competing_s: float, relegated_s: float | None = None, is_late: bool = False) -> Forecast:
    return Forecast(0, 0.0, competing_s, competing_s if relegated_s is None else relegated_s, is_late)


def learned(ratios: Sequence[float], kind: Kind = KIND) -> Calibration:
    known = Calibration()
    for ratio in ratios:
        known.learn(forecast(2.0), Estimate(2.0, 3.0), 2.0 * ratio, is_late=False, kind=kind)
    return known


def test_quotes_come_from_what_was() -> None:
    rng = random.Random(1)
    ratios = [n / 100 for n in range(1, 201)]
    known = learned(rng.sample(ratios, 200))
    assert known.estimate(forecast(10.0), KIND) == Estimate(pytest.approx(10.1), pytest.approx(19.1))


def test_nothing_is_known_at_first_and_old_things_are_forgotten() -> None:
    assert Calibration().estimate(forecast(10.0), KIND) == Estimate(pytest.approx(10.0), pytest.approx(16.0))
    assert learned([1.0] * 19).error == 1.0 and not learned([1.0] * 19).is_known
    assert learned([9.0] * 500 + [1.0] * 200).estimate(forecast(10.0), KIND) == Estimate(10.0, 10.0)


def test_a_class_of_which_little_is_known_goes_by_all() -> None:
    known = learned([1.5] * 30)
    for _ in range(19):
        known.learn(forecast(2.0), Estimate(2.0, 3.0), 8.0, is_late=False, kind=THIRD)
    assert known.estimate(forecast(10.0), OTHER) == Estimate(15.0, 40.0)
    assert known.estimate(forecast(10.0), THIRD) == Estimate(15.0, 40.0)
    known.learn(forecast(2.0), Estimate(2.0, 3.0), 8.0, is_late=False, kind=THIRD)
    assert known.estimate(forecast(10.0), THIRD) == Estimate(40.0, 40.0)
    assert known.estimate(forecast(10.0), KIND) == Estimate(15.0, 15.0)


def test_a_quote_counts_those_that_are_not_in_time() -> None:
    """One in four takes 80 s instead of 4: the median is of those in time, the quote of the others. Who looks late
    already is a matter of its own."""
    known = Calibration()
    for n in range(400):
        known.turned_out(n % 4 == 0, forecast(2.0, 40.0), KIND)
        took_s = 80.0 if n % 4 == 0 else 4.0
        known.learn(forecast(2.0, 40.0), Estimate(2.0, 3.0), took_s, is_late=n % 4 == 0, kind=KIND)
    assert known.estimate(forecast(3.0, 30.0), KIND) == Estimate(6.0, 60.0)
    assert known.beyond(20.0, forecast(3.0, 30.0), KIND) == pytest.approx(0.25, abs=0.06)
    assert known.beyond(70.0, forecast(3.0, 30.0), KIND) == 0.0
    assert known.beyond(70.0, forecast(3.0, 30.0), KIND, margin=1.3) == pytest.approx(0.25, abs=0.06)
    assert known.estimate(forecast(3.0, 30.0, is_late=True), KIND).median_s == 60.0


@given(
    in_time=st.lists(st.floats(0.1, 10.0), min_size=20, max_size=60),
    late=st.lists(st.floats(0.1, 10.0), min_size=20, max_size=60),
    competing_s=st.floats(0.1, 50.0),
    relegated_s=st.floats(0.1, 50.0),
)
def test_no_median_is_beyond_its_quote(
    in_time: list[float], late: list[float], competing_s: float, relegated_s: float
) -> None:
    """Not where those that are late take less than was said of them, either. About one in twenty is beyond a quote."""
    known = Calibration()
    for n in range(300):
        known.turned_out(n % 4 == 0, forecast(1.0), KIND)
    for ratios, is_late in ((in_time, False), (late, True)):
        for ratio in ratios:
            known.learn(forecast(1.0), Estimate(1.0, 1.0), ratio, is_late=is_late, kind=KIND)
    asked = forecast(competing_s, relegated_s)
    told = known.estimate(asked, KIND)
    assert told.median_s <= told.quote_s
    assert known.beyond(told.quote_s * 1.001, asked, KIND) <= 0.05 + 1e-6
    assert known.beyond(told.quote_s * 0.999, asked, KIND) >= 0.05 - 1e-6
    assert known.beyond(told.median_s * 1.001, asked, KIND) <= 0.5 + 1e-6


def test_the_error_is_the_share_of_broken_quotes() -> None:
    """Broken: later than 1.3 times the quote, and than a second more."""
    known = Calibration()
    for took_s in [3.0] * 20 + [3.95] * 10 + [4.05] * 10:
        known.learn(forecast(2.0), Estimate(2.0, 3.0), took_s, is_late=False, kind=KIND)
    assert known.error == pytest.approx(0.25)


# in use


def test_nobody_says_for_policies_that_do_not_predict() -> None:
    d = Driver(configured("medha"), cost_model=plain(2))
    d.arrive(100, 5, "a")
    assert d.scheduler.estimate("a", d.now) is None


def test_an_estimate_is_given_until_the_first_token() -> None:
    d = Driver(configured("longspan", num_instances=1, lookahead=False), cost_model=plain())
    d.arrive(300, 3, "a")
    d.arrive(100, 3, "b")
    d.arrive(100, 3, "gone")
    for name in ("a", "b", "gone"):
        found = d.scheduler.estimate(name, d.now)
        assert found is not None and found.quote_s >= found.median_s > 0.0
    d.abort("gone")
    assert d.scheduler.estimate("gone", d.now) is None
    assert d.scheduler.estimate("nobody", d.now) is None
    while not d.lives["a"].outputs:
        assert d.scheduler.estimate("a", d.now) is not None
        d.complete()
    assert d.scheduler.estimate("a", d.now) is None
    d.finish()
    assert d.scheduler.estimate("b", d.now) is None


@pytest.mark.parametrize("instances", [1, 4])
def test_estimates_come_true_at_moderate_load(instances: int) -> None:
    """Half are served within the median, nearly all within the quote, give or take; asked later, they are no worse."""
    rng, at, arrivals = random.Random(5), 0.0, []
    for n in range(800):
        at += rng.expovariate(2.5 * instances)
        arrivals.append(arrival(at, f"r{n}", min(8000, int(rng.lognormvariate(5.0, 0.8))) + 1, rng.randint(1, 10)))
    run = played(arrivals, plain(instances), num_instances=instances, overload="off")
    told = {decision.request_ids[0]: decision.predicted for decision in run.decisions("promise")}
    late = [name for name in told if run.played[name].ttft_s > told[name]["quote_s"] and int(name[1:]) > 100]
    half = [name for name in told if run.played[name].ttft_s > told[name]["median_s"] and int(name[1:]) > 100]
    assert len(late) < 0.1 * 700
    assert 0.35 * 700 < len(half) < 0.65 * 700


def test_an_idle_machine_is_as_fast_as_it_is() -> None:
    estimates: list[Estimate | None] = []

    def ask(run: Run, now: float) -> None:
        estimates.append(run.scheduler.estimate("a", now))

    run = played([arrival(0.0, "a", 2000)], plain(), look=ask)
    assert estimates[0] is not None
    assert estimates[0].median_s == pytest.approx(run.played["a"].ttft_s, rel=0.1)
