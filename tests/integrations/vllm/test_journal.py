"""The event log that is written inside vLLM: readers take it for one of ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from longspan.core.actions import RunBatch
from longspan.core.events import RequestArrived
from longspan.errors import ReplayError
from longspan.metrics.event_log import EventLog, replay
from longspan.metrics.explain import explain
from longspan.metrics.request_list import list_requests
from longspan.workload.logged import read_logged
from tests.integrations.vllm.engine import Engine, learned


@pytest.mark.parametrize("depth", [1, 2])
def test_it_tells_why_a_request_waited(tmp_path: Path, depth: int) -> None:
    path = tmp_path / "events.jsonl"
    engine = learned(Engine(event_log=path, depth=depth))
    long = engine.ask("long", 7500, 3)
    engine.run(engine.now + 2.0)
    engine.ask("cached", 900, 4, cached=800)
    for number in range(4):
        engine.ask(f"short {number}", 300, 6)
    engine.run(engine.now + 0.4)
    engine.ask("gone", 5000, 6)
    engine.run(engine.now + 0.2)
    engine.abort("gone")
    engine.run()
    engine.decider.close()

    listed = {one.request_id: one for one in list_requests(EventLog(path))}
    assert listed.keys() == engine.all.keys()
    for name, asked in engine.all.items():
        if name != "gone":
            assert (listed[name].num_output_tokens, listed[name].end) == (asked.most, "length")
    story = "\n".join(explain(path, "long").lines())
    assert "pauses" in story and "short" in story
    assert sum(chapter.tokens for chapter in explain(path, "long").chapters if chapter.kind == "prefill") == 7500
    assert "aborted" in "\n".join(explain(path, "gone").lines())
    assert any(decision.step == "promise" for chapter in explain(path, "cached").chapters for decision in chapter.why)
    assert long.ended_at is not None

    came = read_logged(path)
    assert [request.num_prompt_tokens for request in came] == [asked.prompt for asked in engine.all.values()]


def test_every_step_is_in_it_with_all_of_its_tokens(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    engine = learned(Engine(event_log=path))
    engine.decider.close()
    computed: dict[str, int] = {}
    for record in EventLog(path):
        if isinstance(record.event, RequestArrived):
            computed[record.event.request_id] = 0
        for action in record.actions:
            if isinstance(action, RunBatch):
                for segment in action.segments:
                    assert segment.start == computed[segment.request_id]
                    computed[segment.request_id] = segment.end
    assert computed == {name: asked.prompt + asked.most - 1 for name, asked in engine.all.items()}


def test_it_is_not_replayed_and_says_who_decided(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    learned(Engine(event_log=path)).decider.close()
    with pytest.raises(ReplayError, match="VllmLongspan"):
        replay(path)
