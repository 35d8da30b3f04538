"""Tools: how they are asked for, told to the model, called, streamed, and refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from longspan.engine.chat_format import ChatFormat
from tests.server.fake_engine import MODEL, FakeTokenizer
from tests.server.live_server import LiveServer

HELLO = [{"role": "user", "content": "Weather in Paris?"}]
PARAMETERS = {"type": "object", "properties": {"city": {"$ref": "#/$defs/city"}}, "required": ["city"],
              "$defs": {"city": {"type": "string"}}}  # fmt: skip
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "get_weather", "description": "Tells it.", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "now", "strict": True}},
]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
TWO = f'I look.\n{CALL}\n<tool_call>\n{{"name": "now", "arguments": {{}}}}\n</tool_call>'


@pytest.fixture
def thinking(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(FakeTokenizer, "chat_format", ChatFormat.of("{{ tools }}<tool_call></think>"))
    yield


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=HELLO, tools=TOOLS, **fields)


def test_calls(client: openai.OpenAI, server: LiveServer) -> None:
    server.engine.answer = TWO
    choice = ask(client).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content == "I look."
    calls = [(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls]
    assert calls == [("get_weather", {"city": "Paris"}), ("now", {})]
    assert len({call.id for call in choice.message.tool_calls}) == 2
    (prompt,) = server.engine.prompts.values()
    assert "get_weather" in bytes(prompt).decode()


def test_a_stream_of_calls(client: openai.OpenAI, server: LiveServer) -> None:
    """The SDK's own accumulation gives the same as a whole answer; arguments come in pieces."""
    server.engine.answer = TWO
    whole = ask(client).choices[0].message
    content, calls, reasons, deltas = "", {}, [], 0
    for chunk in ask(client, stream=True):
        delta = chunk.choices[0].delta
        content += delta.content or ""
        for call in delta.tool_calls or ():
            deltas += 1
            if call.id:
                assert call.type == "function" and call.function.name
                calls[call.index] = [call.id, call.function.name, call.function.arguments]
            else:
                calls[call.index][2] += call.function.arguments
        reasons.append(chunk.choices[0].finish_reason)
    assert content == whole.content and reasons[-1] == "tool_calls" and deltas > 10
    assert [call[1:] for call in calls.values()] == [
        [call.function.name, call.function.arguments] for call in whole.tool_calls
    ]  # fmt: skip
    with client.chat.completions.stream(model=MODEL, messages=HELLO, tools=TOOLS[1:]) as stream:
        final = stream.get_final_completion().choices[0].message
    assert final.tool_calls and [call.function.name for call in final.tool_calls] == ["get_weather", "now"]


def test_one_call_at_most(client: openai.OpenAI, server: LiveServer) -> None:
    server.engine.answer = TWO
    message = ask(client, parallel_tool_calls=False).choices[0].message
    assert [call.function.name for call in message.tool_calls] == ["get_weather"]


def test_no_call(client: openai.OpenAI, server: LiveServer) -> None:
    server.engine.answer = "It is <sunny>. \n"
    choice = ask(client).choices[0]
    assert (choice.message.content, choice.finish_reason) == (server.engine.answer, "stop")
    assert choice.message.tool_calls is None


def test_none_tells_the_model_of_no_tools(client: openai.OpenAI, server: LiveServer) -> None:
    server.engine.answer = CALL
    choice = ask(client, tool_choice="none").choices[0]
    assert (choice.message.content, choice.finish_reason) == (CALL, "stop")
    (prompt,) = server.engine.prompts.values()
    assert "get_weather" not in bytes(prompt).decode()


def test_a_call_that_is_cut_off(client: openai.OpenAI, server: LiveServer) -> None:
    server.engine.answer = CALL
    choice = ask(client, max_tokens=60).choices[0]
    assert choice.finish_reason == "length"
    assert '{"city": "Paris"}'.startswith(choice.message.tool_calls[0].function.arguments)


def test_required(client: openai.OpenAI, server: LiveServer) -> None:
    server.engine.answer = '[{"name": "now", "arguments": {}}, {"name": "get_weather", "arguments": {"city": "x"}}]'
    choice = ask(client, tool_choice="required").choices[0]
    assert [call.function.name for call in choice.message.tool_calls] == ["now", "get_weather"]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    (params,) = server.engine.params.values()
    assert params.structured_outputs is not None
    schema = json.loads(params.structured_outputs.text)
    assert schema["minItems"] == 1 and "maxItems" not in schema
    assert schema["$defs"]["0"]["properties"]["city"] == {"$ref": "#/$defs/0/$defs/city"}
    server.engine.reset()
    server.engine.answer = '[{"name": "now", "arguments": {}}]'
    ask(client, tool_choice="required", parallel_tool_calls=False)
    (params,) = server.engine.params.values()
    assert params.structured_outputs and json.loads(params.structured_outputs.text)["maxItems"] == 1


def test_a_named_one(client: openai.OpenAI, server: LiveServer) -> None:
    server.engine.answer = '{"city": "Paris"}'
    choice = ask(client, tool_choice={"type": "function", "function": {"name": "get_weather"}}).choices[0]
    (call,) = choice.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "Paris"}')
    assert choice.finish_reason == "stop"
    (params,) = server.engine.params.values()
    assert params.structured_outputs and json.loads(params.structured_outputs.text) == PARAMETERS


def test_history(client: openai.OpenAI, server: LiveServer) -> None:
    """Content of the assistant is null; results have a role of their own."""
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
    history = [*HELLO, {"role": "assistant", "content": None, "tool_calls": [call]},
               {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}]  # fmt: skip
    client.chat.completions.create(model=MODEL, messages=history, tools=TOOLS)
    (prompt,) = server.engine.prompts.values()
    assert "<tool>sunny" in bytes(prompt).decode()


def test_what_the_model_thinks(client: openai.OpenAI, server: LiveServer, thinking: None) -> None:
    server.engine.answer = "<think>\nhm\n</think>\n\nYes."
    message = client.chat.completions.create(model=MODEL, messages=HELLO).choices[0].message
    assert (message.content, message.model_extra["reasoning_content"]) == ("Yes.", "hm")
    thought = text = ""
    for chunk in client.chat.completions.create(model=MODEL, messages=HELLO, stream=True):
        text += chunk.choices[0].delta.content or ""
        thought += (chunk.choices[0].delta.model_extra or {}).get("reasoning_content", "")
    assert (text, thought) == ("Yes.", "hm")
    for effort, wanted in (("low", True), ("none", False)):
        server.engine.reset()
        client.chat.completions.create(model=MODEL, messages=HELLO, reasoning_effort=effort)
        assert server.prompt().startswith(f"<enable_thinking={wanted}>")


SHAPED = {"response_format": {"type": "json_object"}}
DEMANDED = {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "now"}}}


@pytest.mark.parametrize(("fields", "begins"), [(SHAPED, True), (SHAPED, False), (DEMANDED, True), (DEMANDED, False)])
def test_a_grammar_where_the_model_thinks(
    http: httpx2.Client, server: LiveServer, thinking: None, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any],
    begins: bool,
) -> None:  # fmt: skip
    """Where the prompt has it think first, its thoughts are free; elsewhere the answer is there at once, even if it
    holds what looks like thoughts or calls."""
    if begins:
        monkeypatch.setattr(FakeTokenizer, "render_chat", lambda self, messages, /, **kwargs: "<user>x<think>\n")
    said = '{"a": "<think>b</think> <tool_call>{}</tool_call>"}'
    server.engine.answer = f"hm\n</think>\n\n{said}" if begins else said
    for stream in (False, True):
        answer = http.post("/v1/chat/completions", json={"messages": HELLO, "stream": stream, **fields})
        message = streamed(answer) if stream else answer.json()["choices"][0]["message"]
        call = message["tool_calls"][0]["function"]["arguments"] if "tools" in fields else message["content"]
        assert call == said and message.get("reasoning_content") == ("hm" if begins else None), message
    assert {params.structured_outputs.after for params in server.engine.params.values() if params.structured_outputs} \
        == {"</think>" if begins else ""}  # fmt: skip


def streamed(answer: httpx2.Response) -> dict[str, Any]:
    """The message of a stream, with one call at most."""
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
    message: dict[str, Any] = {"content": ""}
    for event in events:
        delta = json.loads(event)["choices"][0]["delta"]
        message["content"] += delta.get("content", "")
        if "reasoning_content" in delta:
            message["reasoning_content"] = message.get("reasoning_content", "") + delta["reasoning_content"]
        for call in delta.get("tool_calls", ()):
            function = message.setdefault("tool_calls", [{"function": {"arguments": ""}}])[0]["function"]
            function["arguments"] += call["function"]["arguments"]
    return message


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"tools": [{"type": "function"}]}, "tools[0].function", "required"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "function"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "pattern"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]}, "tools[0].function.parameters",
         "dictionary"),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tool_choice": "maybe"}, "tool_choice", "must be"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice",
         "none of the tools"),
        ({"tools": TOOLS, "tool_choice": "required", "response_format": {"type": "json_object"}}, "response_format",
         "do not go together"),
        ({"functions": [{"name": "f"}]}, "functions", "not supported"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "does not let it think"),
        ({"reasoning_effort": "much"}, "reasoning_effort", "Input should be"),
        ({"tools": [TOOLS[1]] * 1025}, "tools", "at most 1024"),
        ({"tools": [{"type": "function", "function": {"name": f"f{number}"}} for number in range(1000)],
          "tool_choice": "required"}, "tools", "name one of them"),
    ],
)  # fmt: skip
def test_what_is_refused(http: httpx2.Client, fields: dict[str, Any], param: str, said: str) -> None:
    answer = http.post("/v1/chat/completions", json={"messages": HELLO, **fields})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param and said in answer.json()["error"]["message"], answer.text
