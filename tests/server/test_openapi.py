"""The server does what its /openapi.json says: schemathesis tries it, with all its checks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from schemathesis import engine
from schemathesis.checks import CHECKS, load_all_checks

from longspan.config import EngineConfig
from longspan.entrypoints.openai.structure import STRUCTURE_FIELDS
from longspan.outputs import RequestOutput
from longspan.sampling_params import SamplingParams
from tests.server.fake_engine import FakeEngine
from tests.server.live_server import live_server

LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
NEWER = ("/v1/responses", "/v1/messages", "/v1/messages/count_tokens")
LIMIT = 100_000
ACCEPTS, REJECTS = "positive_data_acceptance", "negative_data_rejection"
UNSAID = re.compile(  # answers to what the document cannot forbid: it hangs on other fields, the model or the load
    "reasoning_effort is not supported: the chat template of this model does not let it think"
    rf"|choices were asked for, but at most \d+ can wait|max_tokens of \d+ are more than {LIMIT}"
)
EXAMPLES = 8  # for each operation and phase; the phase "coverage" tries every boundary of every field besides


class BriefEngine(FakeEngine):
    """Has room for any prompt and output that are tried together, but does not say much."""

    def _outputs(self, num_prompt_tokens: int, params: SamplingParams, request_id: str) -> AsyncIterator[RequestOutput]:
        most = min(params.max_tokens or 1, 12)
        brief = replace(params, max_tokens=most, min_tokens=min(params.min_tokens, most))
        return super()._outputs(num_prompt_tokens, brief, request_id)


def _goes_together(_: object, body: object) -> bool:
    """What the document does not say: of some fields one at most may be given, what is least is not above most, and
    what is to be called must be there."""
    if not isinstance(body, dict):
        return True
    given = [name for name in (*STRUCTURE_FIELDS, "text", "output_config") if body.get(name) is not None]
    least, most = body.get("min_tokens"), next((body[name] for name in LIMITS if body.get(name)), 16)
    numbers = isinstance(least, int | float) and isinstance(most, int | float)
    choice = body.get("tool_choice")
    choice = choice.get("type") if isinstance(choice, dict) else choice
    return len(given) < 2 and not (numbers and least > most) and choice in (None, "none", "auto")


def _is_served(_: object, case: Any) -> bool:
    """And of newer endpoints: this model does not think, an earlier response must be there, the last message is not the
    assistant's, and a conversation has more than one token. What is no good request is tried all the same."""
    body = case.body
    if case.operation.path not in NEWER or not isinstance(body, dict) or case.meta.generation.mode.is_negative:
        return True
    asks = [body.get(name) for name in ("reasoning", "thinking", "previous_response_id", "background")]
    messages = body.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    prefilled = isinstance(last, dict) and last.get("role") == "assistant"
    fills = any(body.get(name) == LIMIT - 1 for name in LIMITS)
    return not (any(asks) or prefilled or fills) and _goes_together(None, body)


def _is_explained(check: str, said: str, case: Any, document: dict[str, Any]) -> bool:
    """Tell whether the server was right all the same. What the generator calls a bad body is one that it meant to
    spoil: it may have spoilt an alternative that the body then does not take."""
    if check == ACCEPTS:
        return UNSAID.search(said) is not None
    if check != REJECTS or not isinstance(case.body, dict) or case.meta.generation.mode.is_positive:
        return False
    body = case.operation.definition.raw["requestBody"]["content"]["application/json"]["schema"]
    spoilt = [str(where) for where, component in case.meta.components.items() if component.mode.is_negative]
    whole = {**body, "components": document["components"]}
    return len(spoilt) == 1 and "body" in spoilt[0].lower() and jsonschema_rs.is_valid(whole, case.body)


@pytest.mark.heavy
def test_the_server_keeps_its_word() -> None:
    fake = BriefEngine(config=EngineConfig(model="fake/model", max_waiting=1024), max_model_len=LIMIT)
    problems, tried, passed = [], Counter[str](), Counter[str]()
    with live_server(fake) as server:
        load_all_checks()
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        document = schema.raw_schema
        schema.config.generation.update(max_examples=EXAMPLES, database="none", deterministic=True)
        schema.config.seed = 0  # nearly: hypothesis also draws from the constants of whatever modules are loaded
        schema.hook("filter_body")(_goes_together)
        schema.hook("filter_case")(_is_served)
        for event in engine.from_schema(schema).execute():
            if isinstance(event, engine.events.NonFatalError | engine.events.FatalError):
                problems.append(str(event))
            if not isinstance(event, engine.events.ScenarioFinished):
                continue
            for number, checks in event.recorder.checks.items():
                case = event.recorder.cases[number].value
                tried[f"{case.method} {case.operation.path}"] += 1
                answer = event.recorder.interactions[number].response
                said = answer.text if answer is not None else "no answer"
                for check in checks:
                    passed[check.name] += 1
                    if check.failure_info is not None and not _is_explained(check.name, said, case, document):
                        problems.append(f"{check.name}: {said}\n{case.method} {case.path} {case.body!r}")
    assert not problems, "\n\n".join(problem[:2000] for problem in problems[:5])
    assert passed.keys() == set(CHECKS.get_all_names())
    for path in ("/v1/completions", "/v1/chat/completions", *NEWER):
        assert tried[f"POST {path}"] > 100, path
    assert fake.prompts  # some were good
