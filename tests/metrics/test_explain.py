"""The story of one request, from a log that the pure scheduler wrote."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from longspan.config import SchedulerConfig
from longspan.core.actions import Action, RunBatch
from longspan.core.decision import COPIED
from longspan.core.events import Event
from longspan.entrypoints import cli
from longspan.errors import ReplayError
from longspan.metrics.event_log import EventLogWriter, read_event_log, replay
from longspan.metrics.explain import explain
from longspan.metrics.story import Chapter, Story
from tests.core import test_prefix_copies as copied
from tests.core.cost_models import scaling_model
from tests.core.driver import Driver

MODEL = scaling_model(
    2, fixed=0.02, fixed_step=0.001, per_token=1e-3, per_pair=0.0, decode_fixed=5e-4, decode_step=0.0,
    per_request=1e-4, migration_per_token=1e-6,
)  # fmt: skip

Tell = Callable[[Driver, str], Story]


class Ticking(Driver):
    """Every event takes its time, so that no chapter is empty."""

    def handle(self, event: Event) -> list[Action]:
        self.now += 0.01
        return super().handle(event)


def driver(**changes: object) -> Driver:
    settings = {
        "num_instances": 2, "kv_tokens": 1000, "min_tokens_per_instance": 1000, "decode_headroom": 10,
        "lookahead": False, "policy": "loongserve",
    }  # fmt: skip
    return Ticking(SchedulerConfig(**(settings | changes)), cost_model=MODEL)  # type: ignore[arg-type]


def write(d: Driver, path: Path) -> Path:
    with EventLogWriter(path, d.config, MODEL) as log:
        for (now, event, actions), why in zip(d.log, d.why, strict=True):
            log.write(now, event, actions, why)
    assert log.path is not None
    return log.path


@pytest.fixture
def tell(tmp_path: Path) -> Tell:
    return lambda d, request_id: explain(write(d, tmp_path / "log.jsonl"), request_id)


def an_instance_is_emptied() -> Driver:
    """`a` decodes on 0 and `b` on 1, when `long` needs 0: `a` moves in with `b`."""
    d = driver()
    d.arrive(100, 800, "a")
    d.arrive(300, 600, "b")
    for first in list(d.model.started):
        d.complete(first)
    d.arrive(600, 5, "long")
    for _ in range(3):
        d.complete()
    d.finish(in_order=False)
    return d


def test_work_that_comes_to_nothing_is_told(tell: Tell) -> None:
    d = driver(policy="elastic_fcfs")
    d.arrive(100, 20, "a")
    d.complete()
    d.complete()
    (instance,) = d.model.started[0].group  # type: ignore[union-attr]  # a batch
    d.lose(instance)
    d.finish()
    story = tell(d, "a")
    told = [kind for kind in kinds(story) if kind not in ("waits", "pauses", "scales")]
    assert told == ["prefill", "decode", "void", "preempted", "prefill", "decode", "ended"]
    assert any("comes to nothing" in line for line in story.lines())


def kinds(story: Story) -> list[str]:
    return [chapter.kind for chapter in story.chapters]


def chapter(story: Story, kind: str) -> Chapter:
    return next(chapter for chapter in story.chapters if chapter.kind == kind)


def test_decode_iterations_alike_are_told_as_one(tell: Tell) -> None:
    d = driver()
    d.arrive(10, 30, "a")
    d.finish()
    story = tell(d, "a")
    assert kinds(story) == ["prefill", "decode", "ended"]
    prefill, decode, end = story.chapters
    assert (prefill.group, prefill.tokens, prefill.why[0].step) == ((0,), 10, "batch")
    assert (decode.group, decode.masters, decode.count) == ((0,), (0,), 29)
    assert end.detail == "length"
    assert prefill.end == decode.start and decode.end == end.start


def test_who_was_moved_and_for_whom_it_was_held(tell: Tell) -> None:
    d = an_instance_is_emptied()
    moved = tell(d, "a")
    assert kinds(moved)[:6] == ["prefill", "decode", "pauses", "migrates", "scales", "decode"]
    assert [decision.step for decision in chapter(moved, "pauses").why] == ["hold"]
    migration = chapter(moved, "migrates")
    assert (migration.before, migration.group, migration.tokens) == ((0,), (1,), 101)
    long = tell(d, "long")
    waited = chapter(long, "waits")
    assert [decision.step for decision in waited.why] == ["gather", "empty"]
    assert {delayer.request_id for delayer in waited.delayers} == {"a", "b"}
    assert waited.delayers[0].instance_seconds >= waited.delayers[1].instance_seconds
    assert chapter(long, "prefill").group == (0,)


def test_a_pause_names_who_ran_meanwhile(tell: Tell) -> None:
    d = driver(num_instances=1)
    d.arrive(100, 300, "a")
    d.complete()
    d.arrive(20, 5, "short")
    d.finish()
    pause = chapter(tell(d, "a"), "pauses")
    assert [delayer.request_id for delayer in pause.delayers] == ["short"]
    (decision,) = [decision for decision in pause.why if decision.step == "pause"]
    assert decision.predicted["gain"] > decision.predicted["cost"]


def test_scaling_up_and_preemption(tell: Tell) -> None:
    d = driver(kv_tokens=20, decode_headroom=0)
    d.arrive(20, 6, "a")
    d.finish()
    story = tell(d, "a")
    scaled = chapter(story, "scales")
    assert (scaled.before, scaled.group) == ((0,), (0, 1))
    assert [decision.step for decision in scaled.why] == ["scale up"]
    d = driver(kv_tokens=20, decode_headroom=0, policy="loongserve_no_scale_up")
    d.arrive(20, 6, "a")
    d.finish()
    story = tell(d, "a")
    assert kinds(story) == ["prefill", "preempted", "prefill", "decode", "ended"]


def test_what_was_computed_before_is_told(tell: Tell) -> None:
    d = driver(policy="elastic_fcfs", num_instances=1, prefix_block=16)
    prompt = list(range(200))
    d.arrive(prompt, 5, "a")
    d.finish()
    d.arrive([*prompt[:100], *range(500, 510)], 5, "b")
    d.arrive(prompt, 5, "c")
    d.finish()
    found = {name: [(each.found, each.tokens) for each in tell(d, name).chapters if each.kind == "prefill"]
             for name in ("a", "b", "c")}  # fmt: skip
    assert found == {"a": [(0, 200)], "b": [(96, 14)], "c": [(192, 8)]}
    assert any("prefill of 14 tokens behind 96 that were there on 0" in line for line in tell(d, "b").lines())


def test_whose_cached_tokens_go_for_whom_is_told(tell: Tell) -> None:
    d = driver(policy="elastic_fcfs", num_instances=1, prefix_block=16)
    for number, name in enumerate("ab"):
        d.arrive(list(range(1000 * number, 1000 * number + 400)), 1, name)
        d.finish()
    d.arrive(list(range(5000, 5700)), 1, "c")
    d.finish()
    lines = list(tell(d, "c").lines())
    (line,) = [line for line in lines if "evicted" in line]
    assert line.strip() == "512 cached tokens on 0 were evicted for c: 400 of a, 112 of b"


def test_copies_of_a_prefix_are_told_to_all_who_wait_for_it(tell: Tell) -> None:
    d = copied.driver()
    copied.many(d)
    d.finish()
    (copy,) = copied.copies(d)
    (decision,) = [each for decisions in d.why for each in decisions if each.step == COPIED]
    (waiting,) = [at for at, _, actions in d.log if copy in actions]
    begun = [name for name in d.lives if name != "first" and first_run(d, name) < waiting]
    assert sorted([*decision.request_ids, *begun]) == sorted(set(d.lives) - {"first"}) and len(decision.request_ids) > 9
    for name in decision.request_ids:
        lines = [line.strip() for line in tell(d, name).lines() if "copied" in line]
        assert len(lines) == 1 and lines[0].startswith(
            f"4000 tokens of its prefix are copied from {copy.source} to {copy.target}, which takes 0.005 s: "
            f"{len(decision.request_ids)} requests wait for them, and anything else would take "
        )  # fmt: skip
    assert not any("copied" in line for name in ("first", *begun) for line in tell(d, name).lines())


def first_run(d: Driver, name: str) -> float:
    return next(now for now, _, actions in d.log for action in actions if isinstance(action, RunBatch)
                for segment in action.segments if segment.request_id == name)  # fmt: skip


def test_refused_aborted_and_unfinished(tell: Tell) -> None:
    d = driver()
    d.arrive(3000, 5, "too long")
    d.arrive(5, 100, "leaves")
    d.arrive(5, 100, "stays")
    for _ in range(6):
        d.complete()
    d.abort("leaves")
    assert "3000" in chapter(tell(d, "too long"), "refused").detail
    assert tell(d, "leaves").chapters[-1].detail == "aborted by the client"
    assert tell(d, "stays").chapters[-1].detail == "not yet: the log ends here"


def test_an_iteration_under_way_is_no_wait(tell: Tell) -> None:
    """Of a request that is aborted in it, and of one that is read in it."""
    d = driver(lookahead=True)
    d.arrive(50, 100, "leaves")
    d.arrive(5, 100, "stays")
    d.arrive(900, 100, "waits")
    for _ in range(6):
        d.complete()
    d.abort("leaves")
    d.abort("nobody")  # a while later
    for name in ("leaves", "stays"):
        *_, last, end = tell(d, name).chapters
        assert (last.kind, last.end, end.kind) == ("decode", end.start, "ended")
    begun = driver()
    begun.arrive(50, 100, "first")
    begun.abort("nobody")
    assert [chapter.kind for chapter in tell(begun, "first").chapters] == ["prefill", "ended"]


def test_times_add_up_whatever_happened(tell: Tell) -> None:
    """No gap and no overlap from arrival to end, also with lookahead, in any order of completion."""
    d = Driver(
        SchedulerConfig(num_instances=2, kv_tokens=60, min_tokens_per_instance=4, policy="loongserve"),
        cost_model=MODEL, seed=3,
    )  # fmt: skip
    for number in range(40):
        d.arrive(d.rng.choice((3, 20, 50)), d.rng.randint(1, 30), f"r{number}")
        if number % 3 == 0:
            d.complete(d.rng.choice(d.model.started))
    d.finish(in_order=False)
    for number in range(40):
        story = tell(d, f"r{number}")
        chapters = story.chapters
        assert all(before.end == after.start for before, after in pairwise(chapters))
        assert chapters[-1].kind == "ended"


def test_explanations_are_no_part_of_a_replay(tmp_path: Path) -> None:
    path = write(an_instance_is_emptied(), tmp_path / "log.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    explained = [line for line in lines if '"why"' in line]
    assert explained
    assert replay(path) is None
    path.write_text("".join(line.replace('{"why":[["', '{"why":[["another ') for line in lines))
    assert any(record.why for record in read_event_log(path))
    assert replay(path) is None


def test_a_broken_explanation_is_named(tmp_path: Path) -> None:
    path = write(an_instance_is_emptied(), tmp_path / "log.jsonl")
    path.write_text(path.read_text().replace('{"why":[["batch",[', '{"why":[["batch",[9999,', 1))
    with pytest.raises(ReplayError, match=r"line \d+: no request has the number 9999"):
        list(read_event_log(path))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(an_instance_is_emptied(), tmp_path / "log.jsonl")
    assert cli.run(["explain", str(path), "a"]) == 0
    told = capsys.readouterr().out
    for words in ("100 prompt tokens", "prefill of 100 tokens on 0 (DoP 1)", "pauses", "migrate from 0 to 1",
                  "because: hold", "scales over: from 0 to 1", "decode iterations on 1", "ends: length"):  # fmt: skip
        assert words in told
    assert cli.run(["explain", str(path), "nobody"]) == 1
    assert "no request 'nobody'" in capsys.readouterr().err
