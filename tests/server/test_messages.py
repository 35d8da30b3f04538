"""Anthropic's Messages API: what its clients send, what they get, whole and streamed, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from longspan.engine.chat_format import ChatFormat
from longspan.errors import EngineDeadError, OverloadedError
from tests.server.fake_engine import MODEL, NO_TEXT_YET, FakeTokenizer
from tests.server.live_server import LiveServer, live_server, typed_events

PATH, COUNT = "/v1/messages", "/v1/messages/count_tokens"
HELLO: list[Any] = [{"role": "user", "content": "Weather in Paris?"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: list[Any] = [{"name": "get_weather", "description": "Tells it.", "input_schema": SCHEMA},
                    {"type": "custom", "name": "now", "input_schema": {"type": "object"}}]  # fmt: skip
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


@pytest.fixture
def claude(server: LiveServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=30) as client:
        yield client


@pytest.fixture
def thinking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeTokenizer, "chat_format", ChatFormat.of("{{ tools }}<tool_call></think>"))


def ask(claude: anthropic.Anthropic, **fields: Any) -> Message:
    given: dict[str, Any] = {"model": MODEL, "messages": HELLO, "max_tokens": 150} | fields
    message = claude.messages.create(**given)
    Message.model_validate(message.model_dump(), strict=True)
    return message


def events_of(http: httpx2.Client, **fields: Any) -> list[dict[str, Any]]:
    """A stream's events, each of which is named by its type and one of the SDK's."""
    body = {"messages": HELLO, "max_tokens": 300, "stream": True} | fields
    found = typed_events(http, PATH, body)
    for event in found:
        if event["type"] not in ("ping", "error", "longspan.progress"):
            EVENT.validate_python(event, strict=True)
    return found


def test_a_message(claude: anthropic.Anthropic, server: LiveServer) -> None:
    message = ask(claude)
    (block,) = message.content
    assert block.to_dict() == {"type": "text", "text": "Hello world", "citations": None}
    assert (message.role, message.stop_reason, message.stop_sequence) == ("assistant", "end_turn", None)
    assert (message.usage.input_tokens, message.usage.output_tokens) == (len(server.prompt()), 11)
    assert message.id.startswith("msg_") and message._request_id
    (params,) = server.engine.params.values()
    assert params.max_tokens == 150


def test_a_conversation(claude: anthropic.Anthropic, server: LiveServer) -> None:
    """System prompts and contents are texts or blocks; results of tools are messages of their own."""
    call = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Paris"}}
    messages: list[Any] = [
        {"role": "user", "content": [{"type": "text", "text": "one", "cache_control": {"type": "ephemeral"}},
                                     {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "x"},
                                          {"type": "text", "text": "I look."}, call]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "sunny"}]},
            {"type": "tool_result", "tool_use_id": "toolu_2", "content": "dry", "is_error": True},
            {"type": "tool_result", "tool_use_id": "toolu_3"}, {"type": "text", "text": "so?"}]},
    ]  # fmt: skip
    ask(claude, system=[{"type": "text", "text": "Be kind."}], messages=messages)
    said = "<system>Be kind.<user>one\ntwo<assistant>I look.<tool>sunny<tool>dry<tool><user>so?"
    assert server.prompt() == said
    with live_server() as other, anthropic.Anthropic(base_url=other.url, api_key="x") as client:
        ask(client, system="Be kind.", max_tokens=4, extra_body={"chat_template_kwargs": {"a": 1}})
        assert other.prompt() == "<a=1><system>Be kind.<user>Weather in Paris?"


def test_why_it_ends(claude: anthropic.Anthropic, server: LiveServer, http: httpx2.Client) -> None:
    assert ask(claude, max_tokens=4).stop_reason == "max_tokens"
    server.engine.reset()
    server.engine.stop_reason = "wor"
    message = ask(claude, stop_sequences=["wor", "x"])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "wor")
    (params,) = server.engine.params.values()
    assert params.stop == ("wor", "x")
    assert events_of(http)[-2]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "wor"}


def test_a_stream(server: LiveServer, http: httpx2.Client) -> None:
    server.engine.answer = f"He{NO_TEXT_YET}y"
    events = events_of(http)
    assert [event["type"] for event in events] == [
        "message_start", "ping", "content_block_start", *["content_block_delta"] * 3, "content_block_stop",
        "message_delta", "message_stop",
    ]  # fmt: skip
    start = events[0]["message"]
    assert start["content"] == [] and start["stop_reason"] is None and start["usage"]["output_tokens"] == 0
    assert start["usage"]["input_tokens"] == events[-2]["usage"]["input_tokens"] == len(server.prompt())
    assert "".join(event["delta"]["text"] for event in events[3:6]) == "Hey"
    assert events[-2]["usage"]["output_tokens"] == 4 and events[-2]["delta"]["stop_reason"] == "end_turn"


def test_a_stream_says_what_a_whole_answer_says(claude: anthropic.Anthropic, server: LiveServer) -> None:
    """By the SDK's own accumulation, tools included."""
    server.engine.answer = f"I look.\n{CALL}"
    whole = ask(claude, tools=TOOLS)
    with claude.messages.stream(model=MODEL, messages=HELLO, tools=TOOLS, max_tokens=150) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_message()
    assert {"text", "input_json", "message_stop"} <= kinds
    assert final.usage == whole.usage and final.stop_reason == whole.stop_reason == "tool_use"
    (text, call), (whole_text, whole_call) = final.content, whole.content
    assert text.type == whole_text.type == "text" and text.text == whole_text.text == "I look."
    assert call.type == whole_call.type == "tool_use" and call.id != whole_call.id
    assert (call.name, call.input) == (whole_call.name, whole_call.input) == ("get_weather", {"city": "Paris"})
    assert "Tells it." in bytes(next(iter(server.engine.prompts.values()))).decode()


@pytest.mark.parametrize(
    ("choice", "answer", "least", "most"),
    [
        ({"type": "any"}, '[{"name": "now", "arguments": {}}]', 1, None),
        ({"type": "any", "disable_parallel_tool_use": True}, '[{"name": "now", "arguments": {}}]', 1, 1),
        ({"type": "tool", "name": "get_weather"}, '{"city": "Rome"}', None, None),
    ],
)
def test_calls_that_are_demanded(
    claude: anthropic.Anthropic, server: LiveServer, choice: Any, answer: str, least: int | None, most: int | None
) -> None:
    server.engine.answer = answer
    message = ask(claude, tools=TOOLS, tool_choice=choice)
    (call,) = message.content
    assert call.type == "tool_use" and message.stop_reason == "tool_use"
    assert (call.name, call.input) == (("now", {}) if least else ("get_weather", {"city": "Rome"}))
    (params,) = server.engine.params.values()
    assert params.structured_outputs is not None
    schema = json.loads(params.structured_outputs.text)
    assert (schema.get("minItems"), schema.get("maxItems")) == (least, most)
    assert least or schema == SCHEMA


def test_tools_that_may_not_be_called(claude: anthropic.Anthropic, server: LiveServer) -> None:
    server.engine.answer = CALL
    message = ask(claude, tools=TOOLS, tool_choice={"type": "none"})
    assert message.content[0].type == "text" and message.stop_reason == "end_turn"
    assert "get_weather" not in server.prompt()


def test_arguments_that_are_no_json(claude: anthropic.Anthropic, server: LiveServer) -> None:
    """A call that was cut off is told as far as it came."""
    server.engine.answer = '{"city": "Rome"}'
    message = ask(claude, tools=TOOLS, tool_choice={"type": "tool", "name": "get_weather"}, max_tokens=9)
    (call,) = message.content
    assert call.type == "tool_use" and call.input == {"INVALID_JSON": '{"city": '}
    assert message.stop_reason == "max_tokens"


def test_what_the_model_thinks(
    claude: anthropic.Anthropic, server: LiveServer, http: httpx2.Client, thinking: None
) -> None:
    server.engine.answer = "<think>\nhm\n</think>\n\nYes."
    message = ask(claude, thinking={"type": "enabled", "budget_tokens": 1024})
    thought, said = message.content
    assert thought.type == "thinking" and thought.thinking == "hm"
    assert said.type == "text" and said.text == "Yes."
    assert server.prompt().startswith("<enable_thinking=True>")
    deltas = [event["delta"] for event in events_of(http) if event["type"] == "content_block_delta"]
    assert "".join(delta.get("thinking", "") for delta in deltas) == "hm"
    assert [block["content_block"]["type"] for block in events_of(http) if block["type"] == "content_block_start"] == [
        "thinking", "text"
    ]  # fmt: skip
    server.engine.reset()
    ask(claude, thinking={"type": "disabled"})
    assert server.prompt().startswith("<enable_thinking=False>")


def test_structured_output(claude: anthropic.Anthropic, server: LiveServer) -> None:
    ask(claude, output_config={"format": {"type": "json_schema", "schema": SCHEMA}})
    (params,) = server.engine.params.values()
    assert params.structured_outputs and json.loads(params.structured_outputs.text) == SCHEMA


def test_count_tokens(claude: anthropic.Anthropic, server: LiveServer) -> None:
    """As many as a message would have as its input; nothing runs."""
    counted = claude.messages.count_tokens(model=MODEL, messages=HELLO, system="Be kind.", tools=TOOLS)
    assert not server.engine.prompts
    assert counted.input_tokens == ask(claude, system="Be kind.", tools=TOOLS).usage.input_tokens


def test_progress_and_a_silence(server: LiveServer) -> None:
    """What keeps a silent stream open is Anthropic's ping; it begins before the first token."""
    with live_server(keep_alive_s=0.01) as slow, httpx2.Client(base_url=slow.url, timeout=30, trust_env=False) as http:
        slow.engine.hold()
        body = {"messages": HELLO, "max_tokens": 8, "stream": True}
        with http.stream("POST", PATH, json=body) as answer:
            lines = (line for line in answer.iter_lines() if line.startswith("event: "))
            assert [next(lines) for _ in range(4)] == ["event: message_start", *["event: ping"] * 3]
            slow.engine.release()
            assert [line for line in lines if line != "event: ping"][-1] == "event: message_stop"


def test_an_error_in_mid_stream(server: LiveServer, http: httpx2.Client) -> None:
    server.engine.fail_after = (2, EngineDeadError("gone"), None)
    events = events_of(http)
    assert events[-1]["type"] == "error" and events[-1]["error"] == {"type": "overloaded_error", "message": "gone"}
    assert events[-1]["request_id"] and events[-2]["type"] == "content_block_delta"


def test_refused_before_it_begins(claude: anthropic.Anthropic, server: LiveServer, http: httpx2.Client) -> None:
    server.engine.refuse = OverloadedError("too late", retry_after_s=7)
    for stream in (False, True):
        answer = http.post(PATH, json={"messages": HELLO, "max_tokens": 3, "stream": stream})
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
        assert answer.json()["error"] == {"type": "rate_limit_error", "message": "too late"}
        assert answer.json()["request_id"] == answer.headers["x-request-id"]
    with pytest.raises(anthropic.RateLimitError):
        ask(claude)


def test_a_key(server: LiveServer) -> None:
    with live_server(api_key=("secret",)) as keyed:
        for key, kind in (("secret", None), ("wrong", anthropic.AuthenticationError)):
            with anthropic.Anthropic(base_url=keyed.url, api_key=key, max_retries=0) as client:
                if kind is None:
                    ask(client)
                    continue
                with pytest.raises(kind) as refused:
                    ask(client)
                assert refused.value.body["error"]["type"] == "authentication_error"  # type: ignore[index]  # JSON
        with anthropic.Anthropic(base_url=keyed.url, auth_token="secret", api_key=None) as client:
            ask(client)
        url = f"{keyed.url}/v1/models"
        assert httpx2.get(url, headers={"x-api-key": "secret"}, timeout=30, trust_env=False).status_code == 200
        both = {"x-api-key": "secret", "authorization": "Bearer wrong"}
        assert httpx2.get(url, headers=both, timeout=30, trust_env=False).status_code == 401
        twice = [("x-api-key", "secret"), ("x-api-key", "secret")]
        assert httpx2.get(url, headers=twice, timeout=30, trust_env=False).status_code == 401


USER = {"role": "user", "content": "x"}


@pytest.mark.parametrize("path", [PATH, COUNT])
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages is empty"),
        ({"messages": "x"}, "Expected `array`"),
        ({"messages": [{"role": "user"}]}, "messages[0].content: Field required"),
        ({"messages": [{"content": "x"}]}, "messages[0].role: Field required"),
        ({"messages": [{"role": "system", "content": "x"}]}, "the system prompt is the field system"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content is empty"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content must be a text"),
        ({"messages": [USER, {"role": "assistant", "content": "I"}]}, "to go on with its answer is not supported"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "'image' is not supported"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "'document' is not supported"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}, "'tool_use' is not supported"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type: Field required"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "content[0].text: Field required"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "tool_use_id: Field required"),
        ({"messages": [{"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "image"}]}]}]}, "'image'"),
        ({"messages": [{"role": "assistant", "content": [{"type": "redacted_thinking"}]}, USER]}, "redacted_thinking"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "b"}]}, USER]},
         "input: Field required"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "b", "input": 1}]},
                       USER]}, "input must be an object"),
        ({"system": 5}, "system"),
        ({"system": [{"type": "image"}]}, "'image'"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name"),
        ({"tools": [{"name": "a"}]}, "tools[0].input_schema: Field required"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "'web_search_20250305' are not supported"),
        ({"tools": [{"type": "computer_20250124", "name": "computer"}]}, "'computer_20250124' are not supported"),
        ({"tools": [TOOLS[0]] * 1025}, "at most 1024"),
        ({"tool_choice": {"type": "any"}}, "needs tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool"}}, "tool_choice.name: Field required"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "f"}}, "none of the tools"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "does not let it think"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers is not supported"),
        ({"container": "x"}, "container is not supported"),
        ({"output_config": {"effort": "low"}}, "output_config.effort"),
        ({"chat_template_kwargs": {"tools": []}}, "tools cannot be set"),
    ],
)  # fmt: skip
def test_what_is_refused(
    http: httpx2.Client, server: LiveServer, path: str, fields: dict[str, Any], said: str
) -> None:
    given = {"messages": HELLO, "max_tokens": 3} | fields
    answer = http.post(path, json={name: value for name, value in given.items() if value is not None})
    assert answer.status_code == 400, answer.text
    told = answer.json()
    assert told["type"] == "error" and told["error"]["type"] == "invalid_request_error"
    assert said in told["error"]["message"], told
    assert not server.engine.prompts


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"max_tokens": None}, "max_tokens: Field required"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 600}, "max_tokens"),
        ({"max_tokens": 500}, "max_tokens"),
        ({"temperature": 7}, "temperature"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"stop_sequences": [""]}, "stop_sequences[0]"),
        ({"stop_sequences": ["a" * 4000] * 5}, "stop_sequences has 20000 characters"),
        ({"stop": "x"}, "stop is not supported"),
        ({"n": 2}, "n is not supported"),
        ({"service_tier": "priority"}, "service_tier is not supported"),
        ({"progress": True}, "progress needs stream"),
        ({"tools": TOOLS, "tool_choice": {"type": "any"},
          "output_config": {"format": {"type": "json_schema", "schema": {}}}}, "do not go together"),
        ({"guided_regex": "a", "output_config": {"format": {"type": "json_schema", "schema": {}}}},
         "do not go together"),
    ],
)  # fmt: skip
def test_what_is_refused_of_answers(
    http: httpx2.Client, server: LiveServer, fields: dict[str, Any], said: str
) -> None:
    given = {"messages": HELLO, "max_tokens": 3} | fields
    answer = http.post(PATH, json={name: value for name, value in given.items() if value is not None})
    assert answer.status_code == 400 and said in answer.json()["error"]["message"], answer.text
    assert not server.engine.prompts


def test_other_errors_have_the_shape(http: httpx2.Client) -> None:
    for answer, status, kind in (
        (http.post(PATH, json={"messages": HELLO, "max_tokens": 3, "model": "x"}), 404, "not_found_error"),
        (http.get(PATH), 405, "invalid_request_error"),
        (http.post(f"{PATH}/batches", json={}), 404, "not_found_error"),
        (http.post(PATH, content=b"{", headers={"content-type": "application/json"}), 400, "invalid_request_error"),
        (http.post(PATH, content=b"{}", headers={"content-encoding": "gzip"}), 415, "invalid_request_error"),
    ):
        assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind), answer.text
        assert answer.json()["request_id"] == answer.headers["x-request-id"]
