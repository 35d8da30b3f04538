"""The event log reads back exactly, and replays to the identical decisions in any process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.config import SchedulerConfig
from longspan.core.actions import (
    OWN,
    Action,
    CancelBatch,
    FreeKV,
    InstanceDrained,
    KVRange,
    MigrateKV,
    RefuseRequest,
    RunBatch,
    Segment,
    StopRequest,
)
from longspan.core.decision import Decision
from longspan.core.events import (
    BatchCompleted,
    Event,
    FirstStageFree,
    InstanceJoined,
    InstanceLeaving,
    InstanceLost,
    KVMigrated,
    RequestAborted,
    RequestArrived,
    TokenOutput,
)
from longspan.core.news import News
from longspan.core.policies.elastic_fcfs.policy import ElasticFcfs
from longspan.core.state import SchedulerState
from longspan.errors import ReplayError
from longspan.metrics.event_log import Difference, EventLogWriter, read_event_log, replay
from longspan.service_level import DEFAULT_SERVICE, ServiceLevel
from tests.core.driver import Driver
from tests.core.random_policy import RandomPolicy
from tests.event_log.runs import (
    CONFIG,
    Record,
    a_day_of_talks,
    a_small_day,
    read,
    records_of,
    write,
)


def test_it_reads_back_exactly(busy_day: Driver, path: Path) -> None:
    log = read_event_log(path)
    assert log.config == CONFIG
    records = list(log)
    assert [(record.now, record.event, list(record.actions)) for record in records] == busy_day.log
    assert [record.line for record in records] == list(range(2, len(records) + 2))
    assert log.truncated_line is None and log.missing() is None and log.notes == []


def test_chunks_stages_and_reasons_read_back_exactly(a_day_of_medha: Driver, tmp_path: Path) -> None:
    path = write(tmp_path / "log", a_day_of_medha)
    assert read(path) == records_of(a_day_of_medha)
    assert any(why for _, _, _, why in read(path))
    assert replay(path) is None


def test_prefixes_that_are_reused_read_back_exactly(tmp_path: Path) -> None:
    driver = a_day_of_talks()
    path = write(tmp_path / "log", driver, max_bytes=10_000)
    assert read(path) == records_of(driver)
    assert replay(path, RandomPolicy(3)) is None
    segments = [segment for record in read(path) for action in record[2] if isinstance(action, RunBatch)
                for segment in action.segments]  # fmt: skip
    assert any(segment.earlier for segment in segments)


def test_floats_keep_every_bit(tmp_path: Path) -> None:
    times = sorted(
        [0.1 + 0.2, 1e-300, 5e-324, 1.7976931348623157e308, 123456789.12345679, 2.0**53 + 2, 0.0, -0.0, 3.0,
         17.000000001, 17.000000002, 1234.567891234, 1e9, 1e9 + 0.1]
    )  # fmt: skip
    with EventLogWriter(tmp_path / "log", CONFIG) as writer:
        for now in times:
            writer.write(now, RequestAborted("a"), [])
    assert [record.now.hex() for record in read_event_log(tmp_path / "log")] == [now.hex() for now in times]


def test_it_replays_identically_here_and_in_another_process(path: Path) -> None:
    assert replay(path) is None
    check = "import sys; from longspan.metrics.event_log import replay; sys.exit(replay(sys.argv[1]) is not None)"
    for seed in ("1", "12345"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", check, str(path)]
        assert subprocess.run(command, env=environment, timeout=60).returncode == 0


def test_a_changed_log_reports_its_first_difference(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    place = next(n for n, line in enumerate(lines) if n > 50 and b'"finished"' in line)
    lines[place] = lines[place].replace(b'"finished"', b'"aborted"', 1)
    path.write_bytes(b"".join(lines))
    difference = replay(path)
    assert isinstance(difference, Difference)
    assert (difference.path, difference.line) == (path, place + 1)
    assert [action.reason for action in difference.expected if isinstance(action, StopRequest)] == ["aborted"]
    assert difference.expected != difference.got
    assert f"{path}, line {place + 1}" in difference.lines()[0]


def test_a_decode_step_that_repeats_the_one_before_is_a_short_line(tmp_path: Path) -> None:
    driver = Driver(SchedulerConfig(policy="elastic_fcfs", num_instances=1, kv_tokens=10_000, lookahead=False))
    for number in range(50):
        driver.arrive(20, 100, f"cmpl-{number:032x}-0")
    driver.finish()
    lines = write(tmp_path / "log", driver).read_bytes().splitlines()
    steps = [line for line in lines if re.fullmatch(rb"\[[0-9.e-]+,\d+,\d+\]", line)]
    assert len(steps) > 90


# whatever happens


small = st.integers(0, 5)
texts = st.text(st.characters(codec="utf-8"))
requests = st.sampled_from(["a", "b", "cmpl-1", 'it"s', "\u00e9\U0001f600"])
numbers = st.integers(-(2**60), 2**60)
ranges = st.builds(KVRange, small, small, small)
pairs = st.lists(st.tuples(small, small), max_size=3).map(tuple)
residences = st.integers(OWN, 3)
segments = st.builds(
    Segment, requests, small, small, st.lists(small, max_size=3).map(tuple), st.lists(ranges, max_size=3).map(tuple),
    pairs, st.booleans(), residences, st.just(()) | pairs, st.just(()) | st.lists(numbers, max_size=3).map(tuple),
)  # fmt: skip
plain_segments = st.builds(
    lambda request, start, length, instance, emits, residence: Segment(
        request, start, length, (instance,), (KVRange(instance, start, start + length),),
        ((instance, start),) if start else (), emits, residence,
    ),
    requests, small, st.integers(1, 3), st.integers(0, 1), st.booleans(), residences,
)  # fmt: skip
groups = st.lists(st.integers(0, 1), max_size=2).map(tuple)
runs = st.builds(RunBatch, small, groups, st.lists(segments | plain_segments, max_size=4).map(tuple))
plain_runs = st.builds(RunBatch, small, st.just((0,)), st.lists(plain_segments, max_size=4).map(tuple))
seconds = st.none() | st.floats(1e-9, 1e9)
services = st.just(DEFAULT_SERVICE) | st.builds(
    ServiceLevel, seconds, seconds, numbers, st.sampled_from([None, "refuse", "serve"])
)  # fmt: skip
keys = st.just(b"") | st.integers(1, 3).flatmap(lambda count: st.binary(min_size=16 * count, max_size=16 * count))
outputs = st.builds(TokenOutput, requests, st.sampled_from([None, None, "stop", "length", "abort"]), keys)
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(RequestArrived, requests, numbers, numbers, services, keys),
    st.builds(RequestAborted, requests),
    st.builds(FirstStageFree, small),
    st.builds(KVMigrated, small),
    st.builds(InstanceLost, small, st.booleans()),
    st.builds(InstanceJoined, small, numbers),
    st.builds(InstanceLeaving, small),
    st.builds(BatchCompleted, small, st.lists(outputs, max_size=4).map(tuple)),
)
large_pairs = st.lists(st.tuples(numbers, numbers), max_size=2).map(tuple)
actions: st.SearchStrategy[Action] = st.one_of(
    runs,
    plain_runs,
    st.builds(MigrateKV, small, requests, small, small, large_pairs, residences, st.just(()) | pairs),
    st.builds(FreeKV, residences, groups, st.just(()) | large_pairs),
    st.builds(StopRequest, requests, groups, st.sampled_from(["finished", "aborted", "preempted"])),
    st.builds(
        RefuseRequest, requests, texts, st.sampled_from(["too_long", "queue_full", "late", "fleet_too_small"]),
        st.none() | st.floats(0.0, 1e9),
    ),
    st.builds(CancelBatch, groups, groups, groups),
    st.builds(InstanceDrained, small),
)
decisions = st.builds(
    Decision, texts, st.lists(requests, max_size=2).map(tuple), groups,
    st.dictionaries(
        texts | st.sampled_from(["tokens of a", "x@1", "@", "y@@", "of cmpl-1"]),
        st.floats(allow_nan=False),
    ),
)  # fmt: skip
times = st.floats(allow_nan=False, allow_infinity=False) | st.integers(0, 10**12).map(lambda ns: ns / 1e9)
anything = st.lists(st.tuples(times, events, st.lists(actions, max_size=3), st.lists(decisions, max_size=2).map(tuple)))


def follow(draw: st.DrawFn) -> list[Record]:
    """Batches that continue one another, as decode iterations do, with some requests that join, leave and chunk."""
    now, records = 0, []
    before: list[Segment] = []
    for batch_id in range(1, draw(st.integers(2, 13))):
        now += draw(st.integers(0, 10**9))
        segments = []
        for segment in before:
            if draw(st.integers(0, 5)):
                length = 1 if draw(st.booleans()) else draw(st.integers(1, 3))
                emits = draw(st.integers(0, 3)) > 0
                instance = segment.compute[0] if draw(st.integers(0, 9)) else 1
                held = dict(segment.context)
                for kept in segment.store:
                    held[kept.instance] = held.get(kept.instance, 0) + kept.length
                store = (KVRange(instance, segment.end, segment.end + length),)
                context = tuple(held.items())
                segments.append(Segment(segment.request_id, segment.end, length, (instance,), store, context, emits))
        segments += draw(st.lists(plain_segments, max_size=2))
        ended = tuple(
            TokenOutput(segment.request_id, draw(st.sampled_from([None, None, None, "stop"])))
            for segment in before
            if segment.emits
        )
        batch = RunBatch(batch_id, (0, 1), tuple(draw(st.permutations(segments)) if draw(st.booleans()) else segments))
        records.append((now / 1e9, BatchCompleted(batch_id - 1, ended), [batch], ()))
        before = list(batch.segments)
    return records


@settings(max_examples=200)
@given(anything | st.composite(follow)(), st.none() | st.integers(1, 2000))
def test_whatever_happens_reads_back_the_same(
    tmp_path_factory: pytest.TempPathFactory, records: list[Record], max_bytes: int | None
) -> None:
    path = tmp_path_factory.mktemp("any") / "log"
    with EventLogWriter(path, CONFIG, max_bytes=max_bytes) as writer:
        for record in records:
            writer.write(*record)
    assert writer.errors == 0
    assert read(path) == [(now, event, actions, why) for now, event, actions, why in records]
    for line in path.read_bytes().splitlines():
        msgspec.json.decode(line)


@settings(max_examples=40)
@given(st.floats(0.0, 1.0), st.sampled_from(["log", "log.gz"]))
def test_a_log_cut_anywhere_reads_to_a_prefix(
    tmp_path_factory: pytest.TempPathFactory, share: float, name: str
) -> None:
    path = write(tmp_path_factory.mktemp("cut") / name, a_small_day(), run="x")
    whole, records = path.read_bytes(), records_of(a_small_day())
    cut = int(share * len(whole))  # how well it is compressed depends on when the thread that writes it wakes
    path.write_bytes(whole[:cut])
    if name == "log" and b"\n" not in whole[:cut]:
        with pytest.raises(ReplayError, match="no header"):
            read_event_log(path)
        return
    try:
        got = read(path)
    except ReplayError as error:
        assert name == "log.gz" and "no header" in str(error)
        return
    assert got == records[: len(got)]
    if name == "log":
        assert len(got) == whole[:cut].count(b"\n") - 1
        log = read_event_log(path)
        assert len(list(log)) == len(got)
        assert log.truncated_line == (None if whole[:cut].endswith(b"\n") else len(got) + 2)
    assert replay(path) is None


# policies of one's own


class Backwards(ElasticFcfs):
    """Decides otherwise than the policy that it is made from: nobody prefills on instance 0."""

    name = "backwards"

    def schedule(self, state: SchedulerState, news: News, now: float) -> None:
        for request in list(state.waiting):
            state.refuse(request.id, "not today")


class InDisguise(Backwards):
    name = "elastic_fcfs"


@pytest.mark.parametrize("policy", [Backwards, InDisguise])
def test_the_log_of_a_policy_of_ones_own_names_it_and_asks_for_it(tmp_path: Path, policy: type[Backwards]) -> None:
    driver = Driver(CONFIG, policy())
    driver.policy_may_rest = True
    driver.arrive(10, 5)
    path = write(tmp_path / "log", driver, policy=policy())
    log = read_event_log(path)
    assert (log.policy, log.config.policy) == (policy.name, policy.name)
    assert log.own_policy == f"{__name__}:{policy.__qualname__}"
    with pytest.raises(ReplayError, match=rf"{policy.__qualname__}.*policy=") as error:
        replay(path)
    assert repr(policy.name) in str(error.value)
    assert replay(path, policy()) is None
    assert isinstance(replay(path, ElasticFcfs()), Difference)


def test_the_log_of_a_known_policy_given_as_an_object_needs_no_help(busy_day: Driver, tmp_path: Path) -> None:
    path = write(tmp_path / "log", busy_day, policy=ElasticFcfs())
    assert read_event_log(path).own_policy is None
    assert replay(path) is None


def test_a_policy_that_no_longer_exists_is_named(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"elastic_fcfs"', b'"gone"'))
    with pytest.raises(ReplayError, match=r"no policy 'gone'.*policy=.*medha"):
        replay(path)
