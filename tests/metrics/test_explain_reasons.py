"""Why a request waited, told in words: what it was promised, when it became hopeless, who went first and why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from longspan.core.decision import SERVED_LATE, Decision
from longspan.entrypoints import cli
from longspan.metrics.event_log import EventLogWriter
from longspan.metrics.explain import explain
from longspan.metrics.reasons import Rank, in_words, why_first
from longspan.metrics.story import Story
from longspan.service_level import ServiceLevel
from tests.core.longspan import Arrival, Run, arrival, plain, played


def write(run: Run, path: Path) -> Path:
    with EventLogWriter(path, run.scheduler.config, plain()) as log:
        for (now, event, actions), why in zip(run.steps, run.why, strict=True):
            log.write(now, event, actions, why)
    assert log.path is not None
    return log.path


def told(story: Story) -> str:
    return "\n".join(story.lines())


def crowd() -> list[Arrival]:
    """`first` runs; then `mine` comes, and others before it or behind."""
    soon, later = ServiceLevel(ttft_s=1.5), ServiceLevel(ttft_s=20.0)
    return [
        arrival(0.0, "first", 300),
        arrival(0.01, "mine", 600, 3, ServiceLevel(ttft_s=5.0)),
        arrival(0.02, "sooner", 300, service=soon),
        arrival(0.03, "important", 200, service=ServiceLevel(ttft_s=20.0, priority=2)),
        arrival(0.04, "later", 200, service=later),
    ]


def test_what_was_promised_and_who_went_first(tmp_path: Path) -> None:
    path = write(played(crowd(), plain()), tmp_path / "log.jsonl")
    story = told(explain(path, "mine"))
    assert "it is due 5.000 s after it came, takes 0.610 s alone" in story
    assert "is promised its first token within 15.250 s" in story
    assert story.count("half of its like have theirs within 0.") == 1
    assert "one request goes before it, with 0." in story
    assert "sooner went first: it was due 3.490 s earlier" in story
    assert "important went first: its priority is 2" in story
    assert "later went first" not in story
    assert "hopeless" not in story and "would be" not in story
    assert "sooner went first" in told(explain(path, "later"))
    assert "nobody goes before it" in told(explain(path, "first"))


def test_when_it_became_hopeless(tmp_path: Path) -> None:
    """It is told once, where it was seen first; and others could be in time yet, and went first."""
    hopeless = arrival(0.01, "mine", 900, 3, ServiceLevel(ttft_s=1.3))
    others = [arrival(0.02, f"other {n}", 200, service=ServiceLevel(ttft_s=1.2)) for n in range(3)]
    run = played([arrival(0.0, "first", 500), hopeless, *others], plain())
    (decision,) = [decision for decision in run.decisions("hopeless") if decision.request_ids == ("mine",)]
    assert decision.predicted["late_s"] > 0.0
    story = told(explain(write(run, tmp_path / "log.jsonl"), "mine"))
    left = "from here on it gets what those leave that can be in time, until its promise is at risk"
    assert story.count(f"s late: {left}") == 1
    assert "went first: it could be in time yet" in story


def test_those_that_can_be_in_time_are_never_told_of_as_hopeless() -> None:
    run = played([arrival(2.0 * n, f"r{n}", 500, 5) for n in range(10)], plain())
    assert not run.decisions("hopeless")
    assert len(run.decisions("promise")) == 10


def test_a_refused_one_is_told_what_it_was_promised(tmp_path: Path) -> None:
    run = played([arrival(0.1 * n, f"r{n}", 200, 2) for n in range(700)], plain(), max_waiting=10**6)
    name = next(iter(run.refused))
    story = told(explain(write(run, tmp_path / "log.jsonl"), name))
    assert "is refused: The server is overloaded" in story
    assert "is promised its first token within 15.000 s" in story


def test_one_that_is_served_late_is_told_so(tmp_path: Path) -> None:
    arrivals = [arrival(0.1 * n, f"r{n}", 200, 2) for n in range(700)]
    run = played(arrivals, plain(), max_waiting=10**6, overload="warn")
    (name,) = run.decisions(SERVED_LATE)[0].request_ids
    story = told(explain(write(run, tmp_path / "log.jsonl"), name))
    assert "it is served, though its first token would be" in story and "s later than is promised" in story


def test_reasons() -> None:
    mine = Rank(0, due=10.0, alone_s=2.0)
    assert why_first(Rank(1), mine, 5.0) == "its priority is 1"
    assert why_first(Rank(0), mine, 5.0) == why_first(mine, Rank(0), 5.0) == ""
    assert why_first(Rank(0, 9.0, 5.0), mine, 5.0) == "it was due 1.000 s earlier"
    assert why_first(Rank(0, 10.5, 1.0), mine, 5.0) == "it was due 0.500 s later, but its prompt takes 1.000 s less"
    assert why_first(Rank(0, 10.5, 3.0), mine, 5.0) == "it had begun"
    assert why_first(mine, mine, 5.0) == "it came first"
    late = Rank(0, 9.0, 5.0, hopeless_at=4.0)
    assert why_first(late, mine, 5.0) == "there was time for it, too"
    assert why_first(late, mine, 3.0) == "it was due 1.000 s earlier"
    assert why_first(mine, late, 5.0) == "it could be in time yet"
    assert why_first(late, late, 5.0) == "sharing alike would end it sooner"
    promised = replace(late, is_promised=True)
    assert why_first(promised, mine, 5.0) == "there was time for it, too, or its promise was at risk"
    assert why_first(promised, late, 5.0) == "it goes by its promise"


@pytest.mark.parametrize("step", ["promise", "hopeless", "batch"])
def test_what_others_note_by_the_same_name_is_told_as_before(step: str) -> None:
    assert not in_words(Decision(step, ("a",), (0,), {"gain": 1.0}))


def test_the_command_tells_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(played(crowd(), plain()), tmp_path / "log.jsonl")
    assert cli.run(["explain", str(path), "mine"]) == 0
    assert "sooner went first" in capsys.readouterr().out
    assert cli.run(["explain", str(path)]) == 0


def test_that_its_tenant_had_more_than_its_share(tmp_path: Path) -> None:
    """Told with the wait, and of those who went first."""
    busy = [arrival(0.0, f"busy{n}", 400, 1, ServiceLevel(tenant="busy", if_late="serve")) for n in range(10)]
    others = [arrival(0.3, f"other{n}", 700, 1, ServiceLevel(tenant="other", if_late="serve")) for n in range(3)]
    path = write(played([*busy, *others], plain(), policy="longspan:fair_shares=true"), tmp_path / "log.jsonl")
    story = told(explain(path, "busy9"))
    assert " s of that its tenant busy had had more than its share of the service" in story
    assert "went first: its tenant was within its share" in story
    assert "because: over its share" not in story
    assert "more than its share" not in told(explain(path, "other0"))
    alone = write(played(busy, plain(), policy="longspan:fair_shares=true"), tmp_path / "alone.jsonl")
    assert "share" not in told(explain(alone, "busy9"))
