"""The server does what its /openapi.json says: schemathesis tries it, with all its checks."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace

import schemathesis
from schemathesis import engine
from schemathesis.checks import CHECKS, load_all_checks

from longspan.config import EngineConfig
from longspan.outputs import RequestOutput
from longspan.sampling_params import SamplingParams
from tests.server.fake_engine import FakeEngine
from tests.server.live_server import live_server

EXAMPLES = 8  # for each operation and phase; the phase "coverage" tries every boundary of every field besides


class BriefEngine(FakeEngine):
    """Has room for any prompt and output that are tried together, but does not say much."""

    def _outputs(self, num_prompt_tokens: int, params: SamplingParams, request_id: str) -> AsyncIterator[RequestOutput]:
        brief = replace(params, max_tokens=min(params.max_tokens or 1, 12))
        return super()._outputs(num_prompt_tokens, brief, request_id)


def test_the_server_keeps_its_word() -> None:
    fake = BriefEngine(config=EngineConfig(model="fake/model", max_waiting=1024), max_model_len=100_000)
    problems, tried, passed = [], Counter[str](), Counter[str]()
    with live_server(fake) as server:
        load_all_checks()
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        schema.config.generation.update(max_examples=EXAMPLES, database="none")
        for event in engine.from_schema(schema).execute():
            if isinstance(event, engine.events.NonFatalError | engine.events.FatalError):
                problems.append(str(event))
            if not isinstance(event, engine.events.ScenarioFinished):
                continue
            for number, checks in event.recorder.checks.items():
                case = event.recorder.cases[number].value
                tried[f"{case.method} {case.operation.path}"] += 1
                for check in checks:
                    passed[check.name] += 1
                    if check.failure_info is not None:
                        problems.append(f"{case.method} {case.path} {case.body!r}: {check.failure_info.failure}")
    assert not problems, "\n\n".join(problems[:5])
    assert passed.keys() == set(CHECKS.get_all_names())
    assert tried["POST /v1/completions"] > 100 and tried["POST /v1/chat/completions"] > 100
    assert fake.prompts  # some were good
