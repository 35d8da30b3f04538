"""Tools with the real model, whose chat template has no place for them, through the SDK."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import openai
import pytest

from tests.e2e.conftest import Server

MODEL = "smollm2-135m"
MOST = 700
"""Tokens: more than what keeps to the schemas may take, with all its white space, whatever is sampled."""
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "days": {"enum": [1, 2, 3]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "get_weather", "description": "The weather.", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "now"}},
]
QUESTION: list[Any] = [{"role": "user", "content": "What will the weather be in Paris?"}]


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize("seed", range(3))
def test_a_named_call_keeps_to_its_schema(client: openai.OpenAI, seed: int) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, tools=TOOLS, seed=seed, max_tokens=MOST,
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
    )  # fmt: skip
    (call,) = answer.choices[0].message.tool_calls or ()
    assert call.type == "function" and call.function.name == "get_weather"
    jsonschema_rs.validate(PARAMETERS, json.loads(call.function.arguments))


@pytest.mark.parametrize("stream", [False, True])
def test_a_required_call_and_its_result(client: openai.OpenAI, stream: bool) -> None:
    ask: dict[str, Any] = {"model": MODEL, "messages": QUESTION, "tools": TOOLS, "seed": 4, "max_tokens": MOST,
                           "tool_choice": "required", "extra_body": {"parallel_tool_calls": False}}  # fmt: skip
    if stream:
        with client.chat.completions.stream(**ask) as events:
            message = events.get_final_completion().choices[0].message
    else:
        message = client.chat.completions.create(**ask).choices[0].message
    (call,) = message.tool_calls or ()
    assert call.function.name in ("get_weather", "now")
    if call.function.name == "get_weather":
        jsonschema_rs.validate(PARAMETERS, json.loads(call.function.arguments))
    function = {"name": call.function.name, "arguments": call.function.arguments}
    calls = [{"id": call.id, "type": "function", "function": function}]
    called = {"role": "assistant", "content": None, "tool_calls": calls}
    history: list[Any] = [*QUESTION, called, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    after = client.chat.completions.create(model=MODEL, messages=history, tools=TOOLS, max_tokens=10)
    assert after.choices[0].finish_reason in ("stop", "length", "tool_calls")


def test_the_log_tells_how_tools_are_told(server: Server) -> None:
    assert any("no place for tools" in line for line in server.lines)
