"""OpenAI's Responses API: what its clients send, what they get, whole and streamed, and what is refused."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from longspan.engine.chat_format import ChatFormat
from longspan.errors import EngineDeadError, OverloadedError
from tests.server.fake_engine import MODEL, NO_TEXT_YET, FakeTokenizer
from tests.server.live_server import LiveServer, live_server, typed_events
from tests.server.test_server_errors import error_of

PATH = "/v1/responses"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: list[Any] = [
    {"type": "function", "name": "get_weather", "description": "Tells it.", "parameters": SCHEMA, "strict": True},
    {"type": "function", "name": "now", "parameters": None, "strict": None},
]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


class City(BaseModel):
    city: str


@pytest.fixture
def thinking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeTokenizer, "chat_format", ChatFormat.of("{{ tools }}<tool_call></think>"))


def ask(client: openai.OpenAI, **fields: Any) -> Response:
    given: dict[str, Any] = {"model": MODEL, "input": "Weather in Paris?"} | fields
    return client.responses.create(**given)


def strictly(raw: Any) -> Any:
    """What the SDK's types say of it, word by word."""
    Response.model_validate(raw, strict=True)
    return raw


def events_of(http: httpx2.Client, **fields: Any) -> list[dict[str, Any]]:
    """A stream's events: each is named by its type, numbered in order, and one of the SDK's."""
    found = typed_events(http, PATH, {"input": "x", "stream": True} | fields)
    for number, event in enumerate(found):
        assert event["sequence_number"] == number
        EVENT.validate_python(event, strict=True)
    return found


def last_prompt(server: LiveServer) -> str:
    return bytes(list(server.engine.prompts.values())[-1]).decode()


def test_a_response(client: openai.OpenAI, server: LiveServer, http: httpx2.Client) -> None:
    raw = strictly(http.post(PATH, json={"input": "Hi", "metadata": {"a": "b"}, "temperature": 0.5}).json())
    assert raw["status"] == "completed" and raw["object"] == "response" and raw["model"] == MODEL
    (item,) = raw["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert item["content"] == [{"type": "output_text", "text": "Hello world", "annotations": [], "logprobs": []}]
    assert raw["usage"] == {
        "input_tokens": 8, "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0}, "output_tokens": 11,
        "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 19,
    }  # fmt: skip
    assert (raw["metadata"], raw["temperature"], raw["store"]) == ({"a": "b"}, 0.5, True)
    assert server.prompt() == "<user>Hi"
    assert ask(client).output_text == "Hello world"


def test_items(client: openai.OpenAI, server: LiveServer) -> None:
    """Messages in both shapes, thoughts, calls and what they came to; what the assistant does in a row is one turn."""
    ask(client, instructions="Be brief.", input=[
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "input_text", "text": "one"}, {"type": "input_text", "text": "two"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
         "content": [{"type": "output_text", "text": "yes", "annotations": []}]},
        {"type": "function_call", "call_id": "c1", "name": "now", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "now", "arguments": "{}", "id": None, "status": "completed"},
        {"type": "function_call_output", "call_id": "c1", "output": "noon"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "night"}]},
        {"role": "user", "content": "so?"},
    ])  # fmt: skip
    said = "<system>Be brief.\n\nBe kind.<user>one\ntwo<assistant>yes<tool>noon<tool>night<user>so?"
    assert server.prompt() == said


def test_it_goes_on_from_an_earlier_one(client: openai.OpenAI, server: LiveServer) -> None:
    """With its input and its output, but not its instructions; from any of them, also where it was deleted since."""
    first = ask(client, instructions="Be kind.")
    server.engine.answer = CALL
    second = ask(client, input="And?", previous_response_id=first.id, tools=TOOLS)
    assert last_prompt(server).endswith("<user>Weather in Paris?<assistant>Hello world<user>And?")
    assert second.previous_response_id == first.id
    (call,) = second.output
    assert call.type == "function_call" and second.output_text == ""
    client.responses.delete(first.id)
    server.engine.answer = "Dry."
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
    third = ask(client, input=[output], previous_response_id=second.id, instructions="Now rude.")
    said = "<system>Now rude.<user>Weather in Paris?<assistant>Hello world<user>And?<assistant><tool>sun"
    assert last_prompt(server).startswith("<system>Now rude.<user>Weather") and third.output_text == "Dry."
    assert last_prompt(server).replace("\n", "") .startswith(said[:70])
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, previous_response_id=first.id)
    assert refused.value.code == "previous_response_not_found" and refused.value.param == "previous_response_id"


def test_what_is_kept(client: openai.OpenAI, server: LiveServer, http: httpx2.Client) -> None:
    response = ask(client, input=[{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])
    assert client.responses.retrieve(response.id).to_dict() == response.to_dict()
    listed = client.responses.input_items.list(response.id, order="asc", limit=1)
    assert [item.content[0].text for item in listed] == ["a", "b"]  # type: ignore[union-attr]  # of that type
    newest = http.get(f"{PATH}/{response.id}/input_items").json()
    assert [item["content"][0]["text"] for item in newest["data"]] == ["b", "a"] and not newest["has_more"]
    client.responses.delete(response.id)
    for answer in (http.get(f"{PATH}/{response.id}"), http.delete(f"{PATH}/{response.id}"),
                   http.post(f"{PATH}/{response.id}/cancel"), http.get(f"{PATH}/{response.id}/input_items")):
        assert error_of(answer, 404)["code"] == "response_not_found"
    unkept = ask(client, store=False)
    assert http.get(f"{PATH}/{unkept.id}").status_code == 404


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "order=up", "after=nothing"])
def test_pages_that_there_are_not(client: openai.OpenAI, http: httpx2.Client, query: str) -> None:
    response = ask(client)
    answer = http.get(f"{PATH}/{response.id}/input_items?{query}")
    assert error_of(answer, 400)["param"] == query.partition("=")[0]
    assert error_of(http.get(f"{PATH}/{response.id}?stream=true"), 400)["param"] == "stream"


def test_a_stream(server: LiveServer, http: httpx2.Client) -> None:
    server.engine.answer = f"He{NO_TEXT_YET}y"
    events = events_of(http)
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created", "in_progress", "output_item.added", "content_part.added", *["output_text.delta"] * 3,
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert "".join(event["delta"] for event in events[4:7]) == events[7]["text"] == "Hey"
    assert events[0]["response"]["status"] == "in_progress" and events[0]["response"]["output"] == []
    final = strictly(events[-1]["response"])
    assert final["output"] == [events[-2]["item"]] and final["usage"]["output_tokens"] == 4
    assert {event["item_id"] for event in events[3:9]} == {events[2]["item"]["id"]} == {final["output"][0]["id"]}
    assert http.get(f"{PATH}/{final['id']}").json() == final


def test_a_stream_of_calls(client: openai.OpenAI, server: LiveServer, http: httpx2.Client) -> None:
    server.engine.answer = f"I look.\n{CALL}"
    events = events_of(http, tools=TOOLS)
    of_call = [event for event in events if event.get("output_index") == 1]
    assert [event["type"].removeprefix("response.") for event in of_call] == [
        "output_item.added", *["function_call_arguments.delta"] * (len(of_call) - 3), "function_call_arguments.done",
        "output_item.done",
    ]  # fmt: skip
    assert "".join(event["delta"] for event in of_call[1:-2]) == of_call[-2]["arguments"] == '{"city": "Paris"}'
    with client.responses.stream(model=MODEL, input="x", tools=TOOLS) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[-1] == "response.completed"
    message, call = final.output
    assert message.type == "message" and message.content[0].text == "I look."  # type: ignore[union-attr]  # of that type
    assert call.type == "function_call" and json.loads(call.arguments) == {"city": "Paris"}
    assert final.output[1].to_dict().keys() >= {"call_id", "id", "name"}


@pytest.mark.parametrize(
    ("choice", "parallel", "answer", "most"),
    [
        ("required", None, '[{"name": "now", "arguments": {}}]', None),
        ("required", False, '[{"name": "now", "arguments": {}}]', 1),
        ({"type": "function", "name": "now"}, None, "{}", None),
    ],
)
def test_calls_that_are_demanded(
    client: openai.OpenAI, server: LiveServer, choice: Any, parallel: bool | None, answer: str, most: int | None
) -> None:
    server.engine.answer = answer
    response = ask(client, tools=TOOLS, tool_choice=choice, parallel_tool_calls=parallel)
    (call,) = response.output
    assert call.type == "function_call" and (call.name, call.arguments) == ("now", "{}")
    assert response.tool_choice == choice or response.tool_choice.name == "now"  # type: ignore[union-attr]  # of that type
    (params,) = server.engine.params.values()
    assert params.structured_outputs and json.loads(params.structured_outputs.text).get("maxItems") == most


def test_structured_output(client: openai.OpenAI, server: LiveServer) -> None:
    server.engine.answer = '{"city": "Rome"}'
    parsed = client.responses.parse(model=MODEL, input="x", text_format=City)
    assert parsed.output_parsed == City(city="Rome")
    (params,) = server.engine.params.values()
    assert params.structured_outputs and json.loads(params.structured_outputs.text)["required"] == ["city"]
    server.engine.reset()
    ask(client, text={"format": {"type": "json_object"}})
    (params,) = server.engine.params.values()
    assert params.structured_outputs and params.structured_outputs.json_object


def test_what_the_model_thinks(
    client: openai.OpenAI, server: LiveServer, http: httpx2.Client, thinking: None
) -> None:
    server.engine.answer = "<think>\nhm\n</think>\n\nYes."
    raw = strictly(http.post(PATH, json={"input": "x", "reasoning": {"effort": "low", "summary": "auto"}}).json())
    thought, said = raw["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "hm"}] and thought["summary"] == []
    assert said["content"][0]["text"] == "Yes." and raw["reasoning"] == {"effort": "low", "summary": "auto"}
    assert 0 < raw["usage"]["output_tokens_details"]["reasoning_tokens"] < raw["usage"]["output_tokens"]
    assert server.prompt().startswith("<enable_thinking=True>")
    kinds = [event["type"].removeprefix("response.") for event in events_of(http) if event.get("output_index") == 0]
    assert kinds == ["output_item.added", "content_part.added", *["reasoning_text.delta"] * (len(kinds) - 5),
                     "reasoning_text.done", "content_part.done", "output_item.done"]  # fmt: skip
    server.engine.reset()
    ask(client, reasoning={"effort": "none"})
    assert server.prompt().startswith("<enable_thinking=False>")
    again = ask(client, input=[*thought_and_said(raw), {"role": "user", "content": "so?"}])
    assert again.status == "completed"


def thought_and_said(raw: dict[str, Any]) -> list[Any]:
    """Output that is given back as input."""
    return list(raw["output"])


def test_cut_off(client: openai.OpenAI, server: LiveServer, http: httpx2.Client) -> None:
    response = ask(client, max_output_tokens=4)
    assert response.status == "incomplete" and response.output_text == "Hell"
    assert response.incomplete_details and response.incomplete_details.reason == "max_output_tokens"
    assert response.output[0].status == "incomplete"  # type: ignore[union-attr]  # of that type
    assert events_of(http, max_output_tokens=4)[-1]["type"] == "response.incomplete"
    server.engine.answer = NO_TEXT_YET * 3
    assert ask(client).output[0].content[0].text == ""  # type: ignore[union-attr]  # of that type


def test_in_the_background(client: openai.OpenAI, server: LiveServer, http: httpx2.Client) -> None:
    server.engine.hold()
    response = ask(client, background=True)
    assert response.status == "queued" and response.background
    assert client.responses.retrieve(response.id).status in ("queued", "in_progress")
    assert http.get(f"{PATH}/{response.id}/input_items").json()["data"][0]["role"] == "user"
    server.engine.release()
    server.engine.ended.get(timeout=30)
    final = until_it_has_ended(http, response.id)
    assert final["status"] == "completed" and final["output"][0]["content"][0]["text"] == "Hello world"
    cancelled = client.responses.cancel(response.id)
    assert cancelled.status == "completed", "it had ended"


def until_it_has_ended(http: httpx2.Client, response_id: str) -> dict[str, Any]:
    while True:  # the test's own time limit ends it
        found: dict[str, Any] = http.get(f"{PATH}/{response_id}").json()
        if found["status"] not in ("queued", "in_progress"):
            return strictly(found)


@pytest.mark.parametrize("how", ["cancel", "delete"])
def test_ended_in_the_background(client: openai.OpenAI, server: LiveServer, http: httpx2.Client, how: str) -> None:
    """What it holds is free at once."""
    server.engine.hold_after = 3
    response = ask(client, background=True)
    if how == "cancel":
        assert client.responses.cancel(response.id).status == "cancelled"
        assert client.responses.retrieve(response.id).status == "cancelled"
    else:
        client.responses.delete(response.id)
        assert http.get(f"{PATH}/{response.id}").status_code == 404
    assert server.engine.ended.get(timeout=30)[1] == "aborted" and not server.engine.running


def test_one_that_many_cancel_at_once_is_always_there(
    client: openai.OpenAI, server: LiveServer, http: httpx2.Client
) -> None:
    for _ in range(5):
        server.engine.hold_after = 1
        response = ask(client, background=True)
        with ThreadPoolExecutor(12) as pool:
            tries = [pool.submit(http.post, f"{PATH}/{response.id}/cancel") for _ in range(6)]
            tries += [pool.submit(http.get, f"{PATH}/{response.id}") for _ in range(6)]
        assert [one.result().status_code for one in tries] == [200] * 12
        assert client.responses.retrieve(response.id).status == "cancelled"


def test_a_failure_in_the_background(client: openai.OpenAI, server: LiveServer, http: httpx2.Client) -> None:
    server.engine.hold()
    response = ask(client, background=True)
    server.engine.fail_after = (0, EngineDeadError("gone"), None)
    server.engine.release()
    final = until_it_has_ended(http, response.id)
    assert final["status"] == "failed" and final["error"] == {"code": "server_error", "message": "gone"}


def test_only_what_is_in_the_background_can_be_cancelled(client: openai.OpenAI, http: httpx2.Client) -> None:
    response = ask(client)
    assert error_of(http.post(f"{PATH}/{response.id}/cancel"), 400)["param"] == "response_id"


def test_an_error_in_mid_stream(server: LiveServer, http: httpx2.Client) -> None:
    server.engine.fail_after = (2, EngineDeadError("gone"), None)
    *_, error, failed = events_of(http)
    assert (error["type"], error["code"], error["message"]) == ("error", "engine_dead", "gone")
    assert failed["type"] == "response.failed" and failed["response"]["status"] == "failed"
    assert failed["response"]["error"] == {"code": "server_error", "message": "gone"}
    assert http.get(f"{PATH}/{failed['response']['id']}").status_code == 404


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"background": True}])
def test_refused_before_it_begins(server: LiveServer, http: httpx2.Client, fields: dict[str, Any]) -> None:
    server.engine.refuse = OverloadedError("too late", retry_after_s=7)
    answer = http.post(PATH, json={"input": "x"} | fields)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
    assert answer.json()["error"]["code"] == "overloaded"


def test_the_stream_begins_before_the_first_token(server: LiveServer) -> None:
    with live_server(keep_alive_s=0.01) as slow, httpx2.Client(base_url=slow.url, timeout=30, trust_env=False) as http:
        slow.engine.hold()
        with http.stream("POST", PATH, json={"input": "x", "stream": True}) as answer:
            lines = (line for line in answer.iter_lines() if line.startswith(("event: ", ":")))
            begin = [next(lines) for _ in range(4)]
            assert begin == ["event: response.created", "event: response.in_progress", *[": keep-alive"] * 2]
            slow.engine.release()
            assert [line for line in lines if line[0] != ":"][-1] == "event: response.completed"


def test_another_key_finds_nothing() -> None:
    """Also where both are one tenant's."""
    with live_server(api_key=("one", "two"), key_max_requests=1) as server:
        mine, other = (
            httpx2.Client(base_url=server.url, headers={"authorization": f"Bearer {key}"}, timeout=30, trust_env=False)
            for key in ("one", "two")
        )
        with mine, other:
            response_id = mine.post(PATH, json={"input": "x"}).json()["id"]
            assert mine.get(f"{PATH}/{response_id}").status_code == 200
            for answer in (other.get(f"{PATH}/{response_id}"), other.delete(f"{PATH}/{response_id}"),
                           other.post(f"{PATH}/{response_id}/cancel"), other.get(f"{PATH}/{response_id}/input_items")):
                assert error_of(answer, 404)["code"] == "response_not_found"
            refused = other.post(PATH, json={"input": "x", "previous_response_id": response_id})
            assert error_of(refused, 400)["code"] == "previous_response_not_found"
            assert httpx2.get(f"{server.url}{PATH}/{response_id}", timeout=30, trust_env=False).status_code == 401
            server.engine.hold()
            running = mine.post(PATH, json={"input": "x", "background": True}).json()["id"]
            assert other.get(f"{PATH}/{running}").status_code == 404
            assert mine.post(PATH, json={"input": "x"}).status_code == 429, "it counts until it has ended"
            assert mine.delete(f"{PATH}/{running}").status_code == 200
            server.engine.release()
            assert mine.post(PATH, json={"input": "x"}).status_code == 200


def test_another_tenant_finds_nothing(http: httpx2.Client) -> None:
    mine, other = {"longspan-tenant": "mine"}, {"longspan-tenant": "other"}
    response_id = http.post(PATH, json={"input": "x"}, headers=mine).json()["id"]
    found = [http.get(f"{PATH}/{response_id}", headers=given).status_code for given in (mine, other, {})]
    assert found == [200, 404, 404]


def test_what_is_given_up_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with (
        live_server(stored_responses=2) as server,
        httpx2.Client(base_url=server.url, timeout=30, trust_env=False) as http,
    ):
        ids = [http.post(PATH, json={"input": "x"}).json()["id"] for _ in range(4)]
        assert [http.get(f"{PATH}/{one}").status_code for one in ids] == [404, 404, 200, 200]
        error = error_of(http.post(PATH, json={"input": "x", "previous_response_id": ids[0]}), 400)
        assert "this server keeps 2" in error["message"]
        metrics = http.get("/metrics").text
    assert 'longspan:stored_responses{engine="0",model_name="fake-model"} 2.0' in metrics
    assert 'longspan:stored_responses_evicted_total{engine="0",model_name="fake-model"} 2.0' in metrics
    told = [record for record in caplog.records if "given up" in record.message]
    assert len(told) == 1, "not for each of them"


def test_a_server_that_keeps_nothing() -> None:
    with (
        live_server(stored_responses=0) as server,
        httpx2.Client(base_url=server.url, timeout=30, trust_env=False) as http,
    ):
        answer = http.post(PATH, json={"input": "x"}).json()
        assert answer["store"] is False and http.get(f"{PATH}/{answer['id']}").status_code == 404
        assert error_of(http.post(PATH, json={"input": "x", "background": True}), 400)["param"] == "background"


def test_an_odd_request_id_makes_no_odd_path(http: httpx2.Client) -> None:
    answer = http.post(PATH, json={"input": "x"}, headers={"x-request-id": "a/b?c#d"})
    assert answer.headers["x-request-id"] == "a/b?c#d"
    response_id = answer.json()["id"]
    assert response_id.startswith("resp_a_b_c_d-") and http.get(f"{PATH}/{response_id}").status_code == 200


ITEM = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"input": None}, "input", "Field required"),
        ({"input": []}, "input", "is empty"),
        ({"input": 5}, "input", "must be a text, or a list of items"),
        ({"input": [5]}, "input[0]", "must be a text, or a list of items"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "must be one of"),
        ({"input": [{"role": "user"}]}, "input[0].content", "Field required"),
        ({"input": [{"role": "user", "content": 5}]}, "input[0].content", "must be a text, or a list of parts"),
        ({"input": [{"content": "x"}]}, "input[0].role", "Field required"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content",
         "'input_image'"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]}, "input[0].content",
         "'input_file'"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", "'item_reference' is not supported"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type", "'computer_call' is not supported"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id", "required"),
        ({"input": [{"type": "function_call", "name": "f", "call_id": "c", "arguments": {}}]}, "input[0].arguments",
         "must be a text"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0].output", "required"),
        ({"instructions": 5}, "instructions", "string"),
        ({"previous_response_id": "resp_x"}, "previous_response_id", "no response 'resp_x'"),
        ({"max_output_tokens": 0}, "max_output_tokens", "greater"),
        ({"max_output_tokens": 600}, "max_output_tokens", "lower it"),
        ({"max_output_tokens": 508}, "max_output_tokens", "max_output_tokens of 508"),
        ({"max_tokens": 5}, "max_tokens", "not supported"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "'web_search' are not supported"),
        ({"tools": [{"type": "computer_use_preview"}]}, "tools[0].type", "'computer_use_preview' are not supported"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "required"),
        ({"tools": [TOOLS[1]] * 1025}, "tools", "at most 1024"),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "f"}}, "tool_choice", "none of the tools"),
        ({"tool_choice": {"type": "web_search_preview"}}, "tool_choice", "must be"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema", "required"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type", "json_schema"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "medium"),
        ({"text": {"format": {"type": "json_object"}}, "guided_regex": "a"}, "guided_regex", "do not go together"),
        ({"tools": TOOLS, "tool_choice": "required", "text": {"format": {"type": "json_object"}}}, "text",
         "do not go together"),
        ({"reasoning": {"effort": "high"}}, "reasoning", "does not let it think"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary", "auto"),
        ({"include": ["message.output_text.logprobs"]}, "include[0]", "reasoning.encrypted_content"),
        ({"metadata": {"a": 1}}, "metadata.a", "string"),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata", "at most 16"),
        ({"background": True, "stream": True}, "background", "do not go together"),
        ({"background": True, "store": False}, "store", "needs store"),
        ({"truncation": "auto"}, "truncation", "not supported"),
        ({"conversation": "c"}, "conversation", "not supported"),
        ({"prompt": {"id": "x"}}, "prompt", "not supported"),
        ({"top_logprobs": 3}, "top_logprobs", "not supported"),
        ({"n": 2}, "n", "not supported"),
        ({"max_tool_calls": 3}, "max_tool_calls", "not supported"),
        ({"service_tier": "flex"}, "service_tier", "not supported"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options", "not supported"),
        ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs", "cannot be set"),
    ],
)  # fmt: skip
def test_what_is_refused(
    http: httpx2.Client, server: LiveServer, fields: dict[str, Any], param: str, said: str
) -> None:
    given = {"input": [ITEM]} | fields
    answer = http.post(PATH, json={name: value for name, value in given.items() if value is not None})
    error = error_of(answer, 400)
    assert error["param"] == param and said in error["message"], error
    assert not server.engine.prompts


def test_harmless_fields(client: openai.OpenAI) -> None:
    """What agents send always, and asks for nothing."""
    response = ask(
        client, include=["reasoning.encrypted_content"], truncation="disabled", service_tier="auto", user="u",
        prompt_cache_key="k", safety_identifier="s", parallel_tool_calls=True, reasoning={"summary": "auto"},
        text={"format": {"type": "text"}, "verbosity": "medium"}, tool_choice="auto", tools=[],
    )  # fmt: skip
    assert response.status == "completed"
