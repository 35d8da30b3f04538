"""The event log reads back exactly, and replays to the identical decisions in any process, whole or in pieces."""

from __future__ import annotations

import gzip
import os
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.config import SchedulerConfig
from longspan.core.actions import (
    OWN,
    Action,
    FreeKV,
    KVRange,
    MigrateKV,
    RefuseRequest,
    RunBatch,
    Segment,
    StopRequest,
)
from longspan.core.costs.cost_model import FittedCostModel
from longspan.core.decision import Decision
from longspan.core.events import (
    BatchCompleted,
    Event,
    FirstStageFree,
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

from .cost_models import scaling_model
from .driver import Driver

CONFIG = SchedulerConfig(
    num_instances=4, kv_tokens=60, min_tokens_per_instance=4, max_requests_per_master=2, decode_headroom=2
)
MODEL = scaling_model(
    2, fixed=0.02, fixed_step=0.001, per_token=1e-3, per_pair=0.0, decode_fixed=5e-4, decode_step=0.0,
    per_request=1e-4, migration_per_token=1e-6,
)  # fmt: skip
OLD_LOGS = Path(__file__).parents[1] / "data" / "event_logs"

Record = tuple[float, Event, Sequence[Action], Sequence[Decision]]


def a_busy_day(config: SchedulerConfig = CONFIG, seed: int = 5, model: FittedCostModel | None = None) -> Driver:
    """Prefills, decodes, aborts, preemptions, refusals; names that hash differently in each process."""
    driver = Driver(config, seed=seed, cost_model=model)
    rng = random.Random(seed)
    for number in range(80):
        driver.arrive(rng.choice((3, 20, 150)), rng.randint(1, 100), f"request-{number}")
        if number % 9 == 0:
            driver.abort(f"request-{number // 2}")
        if driver.model.started and number % 3 == 0:
            driver.complete(rng.choice(driver.model.started), stop=0.05)
    driver.finish(stop=0.02, in_order=False)
    return driver


@pytest.fixture(scope="module")
def busy_day() -> Driver:
    driver = a_busy_day()
    assert driver.scheduler.stats().num_preemptions > 0
    return driver


@pytest.fixture(scope="module")
def a_day_of_medha() -> Driver:
    """Chunks and decodes in one batch, in two stages, explained."""
    config = SchedulerConfig(num_instances=2, pp=2, kv_tokens=400, policy="medha:kvp_tokens_per_shard=100")
    return a_busy_day(config, 7, MODEL)


def records_of(driver: Driver) -> list[Record]:
    return [(now, event, actions, why) for (now, event, actions), why in zip(driver.log, driver.why, strict=True)]


def write(path: Path, driver: Driver, **options: Any) -> Path:
    model = driver.scheduler._state._cost_model
    assert model is None or isinstance(model, FittedCostModel)
    with EventLogWriter(path, driver.config, model, **options) as writer:
        for record in records_of(driver):
            writer.write(*record)
    assert writer.errors == 0 and writer.path is not None
    return writer.path


@pytest.fixture
def path(busy_day: Driver, tmp_path: Path) -> Path:
    return write(tmp_path / "events.jsonl", busy_day)


def read(path: Path) -> list[Record]:
    return [(record.now, record.event, list(record.actions), record.why) for record in read_event_log(path)]


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
    driver = Driver(SchedulerConfig(num_instances=1, kv_tokens=10_000, lookahead=False))
    for number in range(50):
        driver.arrive(20, 100, f"cmpl-{number:032x}-0")
    driver.finish()
    lines = write(tmp_path / "log", driver).read_bytes().splitlines()
    steps = [line for line in lines if re.fullmatch(rb"\[[0-9.e-]+,\d+,\d+\]", line)]
    assert len(steps) > 90


# kinds of files


def test_a_compressed_log(busy_day: Driver, tmp_path: Path) -> None:
    plain = write(tmp_path / "a.jsonl", busy_day, run="x")
    packed = write(tmp_path / "a.jsonl.gz", busy_day, run="x")
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()
    assert packed.stat().st_size < plain.stat().st_size / 2
    assert read(packed) == records_of(busy_day) and replay(packed) is None


@pytest.mark.parametrize("name", ["events.jsonl", "events.jsonl.gz", "events", "a.b.log"])
def test_each_start_has_a_file_of_its_own(busy_day: Driver, tmp_path: Path, name: str) -> None:
    paths = [write(tmp_path / name, busy_day) for _ in range(3)]
    assert paths[0] == tmp_path / name and len(set(paths)) == 3
    numbered = {"events.jsonl": "events-2.jsonl", "events.jsonl.gz": "events-2.jsonl.gz", "events": "events-2",
                "a.b.log": "a.b-2.log"}  # fmt: skip
    assert paths[1].name == numbered[name]
    for path in paths:
        assert read(path) == records_of(busy_day)


def test_writers_that_start_at_once_never_share_a_file(tmp_path: Path) -> None:
    code = (
        "import sys; from longspan.config import SchedulerConfig; from longspan.metrics.event_log import *; "
        "sys.stdin.readline(); w = EventLogWriter(sys.argv[1], SchedulerConfig(), run=sys.argv[2]); w.close(); "
        "print(w.path, w.errors)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "log.jsonl")]
    processes = [
        subprocess.Popen([*command, str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for n in range(4)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60)[0].split() for process in processes]
    assert len({path for path, _ in said}) == 4 and {errors for _, errors in said} == {"0"}
    runs = {read_event_log(path).pieces[0].header.run for path, _ in said}
    assert runs == {"0", "1", "2", "3"}


# pieces


def test_the_pieces_of_a_run_replay_as_a_chain(busy_day: Driver, tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", busy_day, max_bytes=4096)
    pieces = sorted(tmp_path.iterdir(), key=lambda piece: int("0" + piece.suffix[1:]) if piece != path else 1)
    assert [piece.name for piece in pieces[:3]] == ["log.jsonl", "log.jsonl.2", "log.jsonl.3"]
    for piece in (pieces[0], pieces[2], pieces[-1]):
        assert read(piece) == records_of(busy_day)
        assert replay(piece) is None
        assert read_event_log(piece).missing() is None
    assert all(piece.stat().st_size < 4096 + 2048 for piece in pieces)
    assert "alive" not in pieces[1].read_text() and '"requests":' in pieces[1].read_text().splitlines()[0]


def test_another_run_beside_it_is_no_piece_of_it(busy_day: Driver, tmp_path: Path) -> None:
    paths = [write(tmp_path / "log.jsonl", busy_day, max_bytes=8192) for _ in range(2)]
    assert [path.name for path in paths] == ["log.jsonl", "log-2.jsonl"]
    stray = write(tmp_path / "stray", busy_day)
    stray.rename(tmp_path / "log.jsonl.99")
    for path in paths:
        assert read(path) == records_of(busy_day) and replay(path) is None
    assert read(tmp_path / "log.jsonl.99") == records_of(busy_day)


def test_only_the_newest_pieces_are_kept_and_tell_what_is_missing(busy_day: Driver, tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", busy_day, max_bytes=4096, keep=2)
    kept = sorted(tmp_path.iterdir())
    assert len(kept) == 2 and not path.exists()
    for name in (path, *kept):  # the name that was given is enough, though no such file is left
        log = read_event_log(name)
        assert re.fullmatch(r"its pieces 1 to \d+ are missing", str(log.missing()))
        records = records_of(busy_day)
        assert read(name) == records[-len(read(name)) :]
        with pytest.raises(ReplayError, match=r"pieces 1 to \d+ are missing.*every event.*longspan explain"):
            replay(name)
    # A run that starts now takes no name that this one's next piece may want.
    assert write(path, busy_day).name == "log-2.jsonl"


def test_a_piece_that_was_lost_is_missed(busy_day: Driver, tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", busy_day, max_bytes=4096)
    (tmp_path / "log.jsonl.3").unlink()
    assert read_event_log(path).missing() == "its piece 3 is missing"
    with pytest.raises(ReplayError, match="piece 3 is missing"):
        replay(path)
    second = tmp_path / "log.jsonl.2"
    second.write_bytes(second.read_bytes()[:-5])
    (tmp_path / "log.jsonl").rename(tmp_path / "renamed")
    assert read_event_log(path).missing() == "its pieces 1, 3 are missing"
    assert len(read_event_log(tmp_path / "renamed").pieces) == 1


def test_a_piece_that_is_cut_short_before_another_does_not_replay(busy_day: Driver, tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", busy_day, max_bytes=4096)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ReplayError, match=r"log\.jsonl, line \d+: it is cut short, though a piece follows"):
        replay(path)


def test_a_server_that_is_killed_as_it_begins_a_piece_leaves_a_log_that_replays(
    busy_day: Driver, tmp_path: Path
) -> None:
    path = write(tmp_path / "log.jsonl", busy_day, max_bytes=4096)
    last = max(tmp_path.iterdir(), key=lambda piece: int("0" + piece.suffix[1:]) if piece != path else 1)
    for left in (b"", last.read_bytes()[:20]):
        last.write_bytes(left)
        assert replay(path) is None and replay(last) is None


@settings(max_examples=15)
@given(st.integers(1, 20_000), st.sampled_from(["log", "log.gz"]))
def test_any_size_of_pieces_reads_the_same(tmp_path_factory: pytest.TempPathFactory, size: int, name: str) -> None:
    folder = tmp_path_factory.mktemp("pieces")
    driver = a_small_day()
    path = write(folder / name, driver, max_bytes=size)
    assert read(path) == records_of(driver)
    assert replay(path) is None


def a_small_day() -> Driver:
    if not _SMALL_DAY:
        driver = Driver(CONFIG, seed=3)
        for number in range(20):
            driver.arrive(driver.rng.choice((3, 20, 150)), driver.rng.randint(1, 20))
            if driver.model.started and number % 3 == 0:
                driver.complete(driver.rng.choice(driver.model.started), stop=0.05)
        driver.abort("r18")
        driver.finish(in_order=False)
        _SMALL_DAY.append(driver)
    return _SMALL_DAY[0]


_SMALL_DAY: list[Driver] = []

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
services = st.just(DEFAULT_SERVICE) | st.builds(ServiceLevel, seconds, seconds, numbers)
outputs = st.builds(TokenOutput, requests, st.sampled_from([None, None, "stop", "length", "abort"]))
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(RequestArrived, requests, numbers, numbers, services),
    st.builds(RequestAborted, requests),
    st.builds(FirstStageFree, small),
    st.builds(KVMigrated, small),
    st.builds(BatchCompleted, small, st.lists(outputs, max_size=4).map(tuple)),
)
large_pairs = st.lists(st.tuples(numbers, numbers), max_size=2).map(tuple)
actions: st.SearchStrategy[Action] = st.one_of(
    runs,
    plain_runs,
    st.builds(MigrateKV, small, requests, small, small, large_pairs, residences),
    st.builds(FreeKV, residences, groups, st.just(()) | large_pairs),
    st.builds(StopRequest, requests, groups, st.sampled_from(["finished", "aborted", "preempted"])),
    st.builds(RefuseRequest, requests, texts, st.sampled_from(["too_long", "queue_full"])),
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


# what is broken


def test_a_last_line_cut_short_is_left_out_and_reported(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])
    assert replay(path) is None
    log = read_event_log(path)
    count = len(list(log))
    assert log.truncated_line == count + 2


BROKEN = {
    "no JSON": (b'[1.0,["arrive"\n', "truncated|malformed|expected"),
    "no UTF-8": (b'[1.0,["arrive","\xff",1,1]]\n', "UTF-8|utf-8"),
    "an object": (b'{"now": 1.0}\n', "array"),
    "no event": (b"[1.0]\n", "a time and an event"),
    "no time": (b'["now",["moved",1]]\n', "its time is 'now'"),
    "unknown event": (b'[1.0,["boom",1]]\n', "'boom' is no event"),
    "missing field": (b'[1.0,["moved"]]\n', "'moved' is no event, or not one with 0 values"),
    "no number": (b'[1.0,["moved","one"]]\n', "'one' is no whole number"),
    "unknown action": (b'[1.0,["moved",1],["dance",3]]\n', "is no action"),
    "unknown request": (b'[1.0,["abort",99999]]\n', "no request has the number 99999"),
    "unknown batch": (b"[1.0,99999]\n", "batch 99999 does not run"),
    "no such output": (b'[1.0,["left",1],["run",500,[9],["z",0,1,[9]]]]\n[1.0,[500,7,"stop"]]\n', "has no output 7"),
    "no reason": (b'[1.0,["left",1],["run",500,[9],["z",0,1,[9]]]]\n[1.0,[500,0,"why"]]\n', "'why' is none of stop"),
    "nothing to continue": (b'[1.0,["moved",1],17]\n', "batch 17 continues none"),
    "too much to continue": (b'[1.0,["moved",1],["run",17,[9],3]]\n', "continues more than the 0 segments"),
    "impossible": (b'[1e9,["moved",1]]\n', "the scheduler refuses it: migration 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_line_is_named_with_its_cause(path: Path, name: str) -> None:
    broken, cause = BROKEN[name]
    lines = path.read_bytes().splitlines(keepends=True)
    number = 4 + broken.count(b"\n")
    path.write_bytes(b"".join([*lines[:4], broken, *lines[4:]]))
    with pytest.raises(ReplayError, match=rf"line {number}: .*({cause})"):
        list(read_event_log(path))
        replay(path)


@pytest.mark.parametrize(
    ("header", "cause"),
    [
        (b"", "no header"),
        (b'{"version": 1', "no header"),
        (b"[1]\n", "object"),
        (b"# Notes\n", "line 1: this is no event log"),
        (b"[1, 2]\n", "line 1: this is no event log"),
        (b"\x80\xff\n", "line 1: this is no event log"),
        (b'{"version": 99, "config": {}}\n', "version 99"),
        (b'{"version": 1, "config": {"num_instances": 0}}\n', "num_instances is 0"),
        (b'{"version": 2, "policy": "medha", "config": {"num_instances": "two"}}\n', "num_instances|int"),
        (b'{"version": 1}\n', "config is None"),
        (b'{"version": 2, "policy": "medha"}\n', "config"),
        (b'{"version": 2, "policy": "medha", "config": {}, "requests": [["a"]]}\n', "is no number"),
        (b'{"version": 2, "policy": "medha", "config": {}, "running": [["a"]]}\n', "is no action"),
    ],
)
def test_a_broken_header(tmp_path: Path, header: bytes, cause: str) -> None:
    (tmp_path / "log").write_bytes(header)
    with pytest.raises(ReplayError, match=cause):
        read_event_log(tmp_path / "log")


def test_what_is_no_log(tmp_path: Path) -> None:
    for name in ("missing", "no folder/missing"):
        with pytest.raises(ReplayError, match="No such file"):
            read_event_log(tmp_path / name)
    with pytest.raises(ReplayError, match="is no file"):
        read_event_log(tmp_path)
    (tmp_path / "log.gz").write_bytes(gzip.compress(b"{}\n" * 1000)[:20] + b"\xff" * 100)
    with pytest.raises(ReplayError, match="compressed, and broken"):
        read_event_log(tmp_path / "log.gz")


def test_a_compressed_log_of_several_members_is_read_whole(busy_day: Driver, tmp_path: Path) -> None:
    lines = write(tmp_path / "log", busy_day).read_bytes().splitlines(keepends=True)
    path = tmp_path / "log.gz"
    path.write_bytes(gzip.compress(b"".join(lines[:20])) + gzip.compress(b"".join(lines[20:])))
    assert read(path) == records_of(busy_day)
    path.write_bytes(path.read_bytes() + b"garbage")
    with pytest.raises(ReplayError, match="compressed, and broken"):
        read(path)


@pytest.mark.parametrize(
    "line",
    [
        b'[1.0,["abort","a"],{"why":[["step",[],[],{"s":1' + b"0" * 400 + b"}]]}]",
        b"[" * 100_000,
        b"[1" + b"0" * 400 + b',["abort","a"]]',
    ],
)
def test_numbers_and_depths_beyond_all_measure_are_told_with_their_line(path: Path, line: bytes) -> None:
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(ReplayError, match=r"events.jsonl, line \d+: "):
        read(path)


@pytest.mark.parametrize("piece", [0, -1])
def test_pieces_count_from_1(path: Path, piece: int) -> None:
    path.write_bytes(path.read_bytes().replace(b'"piece":1', b'"piece":%d' % piece, 1))
    with pytest.raises(ReplayError, match="they count from 1"):
        read_event_log(path)


def test_a_piece_of_any_number_is_told_at_once(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"piece":1', b'"piece":10000000000', 1))
    assert read_event_log(path).missing() == "its pieces 1 to 9999999999 are missing"


# older versions


@pytest.mark.parametrize("path", sorted(OLD_LOGS.glob("v1_*")), ids=lambda path: path.name)
def test_logs_of_version_1_replay_and_say_the_same_in_this_one(path: Path, tmp_path: Path) -> None:
    log = read_event_log(path)
    assert replay(path) is None
    records = list(log)
    assert len(records) > 80
    with EventLogWriter(tmp_path / "log", log.config, log.cost_model) as writer:
        for record in records:
            writer.write(record.now, record.event, record.actions, record.why)
    again = list(read_event_log(tmp_path / "log"))
    assert [(r.now, r.event, r.actions, r.why) for r in again] == [(r.now, r.event, r.actions, r.why) for r in records]
    assert replay(tmp_path / "log") is None
    assert 3 * (tmp_path / "log").stat().st_size < len(gzip.decompress(path.read_bytes()))


def test_the_pieces_of_a_log_of_version_2_replay() -> None:
    """Its later pieces do not say which residences are there: that follows from those before."""
    for path in OLD_LOGS.glob("v2_pieces*"):
        log = read_event_log(path)
        assert len(log.pieces) == 3
        assert replay(path) is None


def test_the_logs_of_version_1_hold_everything() -> None:
    seen = set()
    for path in OLD_LOGS.glob("v1_*"):
        for record in read_event_log(path):
            seen |= {type(record.event), *map(type, record.actions)}
            seen |= {action.reason for action in record.actions if isinstance(action, StopRequest)}
    assert seen == {
        RequestArrived, RequestAborted, FirstStageFree, BatchCompleted, KVMigrated, RunBatch, MigrateKV, FreeKV,
        StopRequest, RefuseRequest, "finished", "aborted", "preempted",
    }  # fmt: skip


@pytest.mark.parametrize("version", [1, 2])
def test_options_of_old_logs_that_are_unknown_or_renamed_are_told(
    tmp_path: Path, busy_day: Driver, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    from longspan.metrics.event_log import conversion

    monkeypatch.setitem(conversion.RENAMED_OPTIONS, "headroom", "decode_headroom")
    if version == 2:
        text = write(tmp_path / "new", busy_day).read_bytes()
    else:
        text = gzip.decompress((OLD_LOGS / "v1_elastic_fcfs.jsonl.gz").read_bytes())
    assert text.count(b'"decode_headroom":2') == 1
    path = tmp_path / "log"
    path.write_bytes(text.replace(b'"decode_headroom":2', b'"headroom":2,"shoe_size":[44]'))
    log = read_event_log(path)
    assert log.config.decode_headroom == 2
    assert log.notes == [
        "its option headroom is called decode_headroom now",
        "its option shoe_size = [44] is unknown to this version of Longspan, and left out",
    ]
    assert replay(path) is None
