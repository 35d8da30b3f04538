"""What a body may hold: everything is bounded before it is built, and refused by the name that the client knows."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.entrypoints.anthropic.request import CountTokensRequest, MessagesRequest
from longspan.entrypoints.openai.bounds import Bounds
from longspan.entrypoints.openai.decoding import BodyReader
from longspan.entrypoints.openai.json_place import bad_utf8, lone_surrogate, place_of
from longspan.entrypoints.openai.protocol import ChatCompletionRequest, CompletionRequest
from longspan.entrypoints.openai.request_fields import RequestFields
from longspan.entrypoints.responses.request import ResponsesRequest
from longspan.errors import RequestError
from tests.server.live_server import LiveServer
from tests.server.test_server_errors import error_of

MILLION = 1_000_000
TOO_LONG, TOO_MANY, TOO_LARGE = "context_length_exceeded", "array_above_max_length", "value_too_large"
COMPLETIONS, CHAT, RESPONSES = "/v1/completions", "/v1/chat/completions", "/v1/responses"
MESSAGES = "/v1/messages"
JSON = {"content-type": "application/json"}
BOUNDS = Bounds(request_tokens=512, prompt_chars=4096, choices=64, vocab_size=257)


def post(http: httpx2.Client, path: str, body: bytes | dict[str, Any]) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()  # surrogates become escapes
    return http.post(path, content=content, headers=JSON)


def refused(http: httpx2.Client, path: str, body: bytes | dict[str, Any]) -> tuple[str | None, str | None]:
    error = error_of(post(http, path, body), 400)
    assert error["message"].isprintable() and len(error["message"]) < 1000
    return error["param"], error["code"]


def message(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}, fields]}


LONE = "a\ud800b"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (COMPLETIONS, {"prompt": "x", "max_tokens": 2, "stop": "\ud800"}, "stop"),
        (COMPLETIONS, {"prompt": "x", "stop": ["a", LONE]}, "stop[1]"),
        (COMPLETIONS, {"prompt": LONE}, "prompt"),
        (COMPLETIONS, {"prompt": ["x", "y", "\udc00"]}, "prompt[2]"),
        (COMPLETIONS, {"prompt": "x", "model": LONE}, "model"),
        (COMPLETIONS, {"prompt": "x", "user": LONE}, "user"),
        (COMPLETIONS, {"prompt": "x", "metadata": {"a": [1, {"b": LONE}]}}, "metadata.a[1].b"),
        (COMPLETIONS, {"prompt": "x", LONE: 1}, None),
        (CHAT, message(role="user", content=LONE), "messages[2].content"),
        (CHAT, message(role=LONE, content="x"), "messages[2].role"),
        (CHAT, message(role="user", name="\udfff", content="x"), "messages[2].name"),
        (CHAT, message(role="user", content=[{"type": "text", "text": "x"}, {"type": "text", "text": LONE}]),
         "messages[2].content[1].text"),
        (CHAT, message(role="user", content="x") | {"chat_template_kwargs": {"a": LONE}}, "chat_template_kwargs.a"),
        (CHAT, message(role="user", content="x") | {"chat_template_kwargs": {LONE: "a"}}, "chat_template_kwargs"),
        (RESPONSES, {"input": LONE}, "input"),
        (RESPONSES, {"input": "x", "instructions": LONE}, "instructions"),
        (RESPONSES, {"input": [{"type": "function_call_output", "call_id": LONE, "output": "x"}]}, "input[0].call_id"),
        (RESPONSES, {"input": "x", "metadata": {"a": LONE}}, "metadata.a"),
        (RESPONSES, {"input": "x", "previous_response_id": LONE}, "previous_response_id"),
    ],
)  # fmt: skip
def test_half_of_a_surrogate_pair_is_refused_where_it_stands(
    http: httpx2.Client, server: LiveServer, path: str, body: dict[str, Any], param: str | None
) -> None:
    assert refused(http, path, body) == (param, "invalid_unicode")
    assert not server.engine.prompts
    assert post(http, COMPLETIONS, {"prompt": "x", "stop": "😀"}).status_code == 200  # a whole pair is fine


def test_bytes_that_are_not_utf8_are_refused_where_they_stand(http: httpx2.Client) -> None:
    assert refused(http, COMPLETIONS, b'{"prompt": "a\xff"}') == ("prompt", "invalid_unicode")
    assert refused(http, COMPLETIONS, b'{"prompt": "a", "user": {"x": [0, "\xed\xa0\x80"]}}') == (
        "user.x[1]", "invalid_unicode",
    )  # fmt: skip


@pytest.mark.parametrize("control", ["\0", "\x1b[31m", "\x7f", "\u2028", "\ufeff", "\uffff", "\U0010ffff"])
def test_other_odd_characters_are_text_like_any(http: httpx2.Client, server: LiveServer, control: str) -> None:
    assert post(http, COMPLETIONS, {"prompt": control, "stop": control, "user": control}).status_code == 200
    assert list(server.engine.prompts.values()) == [list(control.encode())]


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (b"", None, "invalid_json"),
        (b"null", None, "invalid_json"),
        (b'"prompt"', None, "invalid_json"),
        (b'\xef\xbb\xbf{"prompt": "x"}', None, "invalid_json"),
        (b'{"prompt": "x"} {}', None, "invalid_json"),
        (b'{"prompt": "x", "temperature": NaN}', None, "invalid_json"),
        (b'{"prompt": "x", "temperature": Infinity}', None, "invalid_json"),
        (b'{"prompt": "x", "temperature": 1e999}', "temperature", "invalid_value"),
        (b'{"prompt": "x", "ttft_slo_ms": 1e400}', "ttft_slo_ms", "invalid_value"),
        (b'{"prompt": "x", "ttft_slo_ms": 1e-320}', "ttft_slo_ms", "invalid_value"),
        (b'{"prompt": "x", "top_k": ' + b"9" * 4000 + b"}", "top_k", "invalid_value"),
        (b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", "seed", TOO_LARGE),
        (b'{"prompt": "x", "priority": -9223372036854775809}', "priority", "invalid_value"),
        (b'{"prompt": [1e400]}', "prompt[0]", "invalid_value"),
        (b'{"prompt": [1.5]}', "prompt", "invalid_value"),
        (b'{"prompt": [18446744073709551617]}', "prompt", "invalid_value"),
        (b'{"prompt": [[1], [-1]]}', "prompt[1]", "invalid_value"),
        (b'{"prompt": "x", "max_tokens": true}', "max_tokens", "invalid_type"),
        (b'{"prompt": "x", "max_tokens": "3"}', "max_tokens", "invalid_type"),
        (b'{"prompt": "x", "prompt": "y"}', "prompt", "duplicate_field"),
        (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", None, "invalid_json"),
        (b'{"prompt": "x", "logit_bias": ' + b"[" * 900 + b"]" * 900 + b"}", "logit_bias", "value_too_large"),
    ],
)  # fmt: skip
def test_odd_json(
    http: httpx2.Client, server: LiveServer, body: bytes, param: str | None, code: str
) -> None:
    assert refused(http, COMPLETIONS, body) == (param, code)
    assert not server.engine.prompts


@pytest.mark.parametrize(
    ("seed", "n", "meant"),
    [
        # What OpenAI's document and readers that have only doubles take for the first and the last of 64 bits.
        ("-9223372036854776000", 1, [9223372036854775616]),
        ("9223372036854776000", 1, [-9223372036854775616]),
        ("9223372036854775807", 2, [9223372036854775807, -9223372036854775808]),
        ("1e300", 1, [0]),
        ("1" + "0" * 4000 + "7", 1, [7]),
    ],
)
def test_any_whole_number_is_a_seed(
    http: httpx2.Client, server: LiveServer, seed: str, n: int, meant: list[int]
) -> None:
    body = f'{{"prompt": "x", "seed": {seed}, "n": {n}, "max_tokens": 1}}'.encode()
    assert post(http, COMPLETIONS, body).status_code == 200
    assert [params.seed for params in server.engine.params.values()] == meant


def test_numbers_that_are_whole_in_json(http: httpx2.Client, server: LiveServer) -> None:
    assert post(http, COMPLETIONS, b'{"prompt": [97.0, 1e2], "max_tokens": 2.0, "n": 1e0}').status_code == 200
    assert list(server.engine.prompts.values()) == [[97, 100]]


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_that_is_not_called_json(http: httpx2.Client, content_type: str) -> None:
    answer = http.post(COMPLETIONS, content=b'{"prompt": "x"}', headers={"content-type": content_type})
    assert error_of(answer, 400)["code"] == "invalid_json"
    odd = {"content-type": "application/vnd.api+json; charset=utf-8"}
    assert http.post(COMPLETIONS, content=b'{"prompt": "x"}', headers=odd).status_code == 200




@pytest.mark.parametrize(
    ("path", "body", "param", "code"),
    [
        (COMPLETIONS, lambda: {"prompt": "x" * 60 * MILLION}, "prompt", TOO_LONG),
        (COMPLETIONS, lambda: {"prompt": "漢" * MILLION}, "prompt", TOO_LONG),
        (COMPLETIONS, lambda: {"prompt": ["x", "y" * MILLION]}, "prompt", TOO_LONG),
        (COMPLETIONS, lambda: {"prompt": [""] * MILLION}, "prompt", TOO_MANY),
        (COMPLETIONS, lambda: {"prompt": [[1]] * MILLION}, "prompt", TOO_MANY),
        (COMPLETIONS, lambda: {"prompt": [5] * MILLION}, "prompt", TOO_LONG),
        (COMPLETIONS, lambda: {"prompt": [[5], [5] * MILLION]}, "prompt", TOO_LONG),
        (COMPLETIONS, lambda: {"prompt": "x", "stop": "a" * 10 * MILLION}, "stop", TOO_LARGE),
        (COMPLETIONS, lambda: {"prompt": "x", "stop": ["a" * 300_000] * 128}, "stop", TOO_LARGE),
        (COMPLETIONS, lambda: {"prompt": "x", "stop": [f"{i:04}" * 999 for i in range(20)]}, "stop",
         "string_above_max_length"),
        (COMPLETIONS, lambda: {"prompt": "x", "stop": ["a"] * 129}, "stop", TOO_MANY),
        (COMPLETIONS, lambda: {"prompt": "x", "stop_token_ids": [1] * MILLION}, "stop_token_ids", TOO_LARGE),
        (COMPLETIONS, lambda: {"prompt": "x", "stop_token_ids": [1] * 2000}, "stop_token_ids", TOO_MANY),
        (COMPLETIONS, lambda: {"prompt": "x", "model": "m" * MILLION}, "model", TOO_LARGE),
        (COMPLETIONS, lambda: {"prompt": "x", "logit_bias": {str(i): 1 for i in range(MILLION)}}, "logit_bias",
         TOO_LARGE),
        (COMPLETIONS, lambda: {"prompt": "x", "logit_bias": {str(i): 1 for i in range(2000)}}, "logit_bias", TOO_MANY),
        (CHAT, lambda: {"messages": [{"role": "user", "content": ""}] * MILLION}, "messages", TOO_LONG),
        (CHAT, lambda: {"messages": [{}] * MILLION}, "messages", TOO_LONG),
        (CHAT, lambda: message(role="user", content="x" * MILLION), "messages", TOO_LONG),
        (CHAT, lambda: message(role="user", content=[{"type": "text", "text": ""}] * MILLION), "messages",
         TOO_LONG),
        (CHAT, lambda: {"messages": [{"role": "user", "content": "x" * 99}] * 99}, "messages", TOO_LONG),
        (CHAT, lambda: message(role="assistant", tool_calls=[[]] * MILLION), "messages[2].tool_calls", TOO_LARGE),
        (CHAT, lambda: message(role="user", content="x") | {"chat_template_kwargs": {"a": [0] * MILLION}},
         "chat_template_kwargs", TOO_LARGE),
        (CHAT, lambda: message(role="user", content="x") | {"chat_template_kwargs": {"a": deep(40)}},
         "chat_template_kwargs", TOO_LARGE),
        (CHAT, lambda: message(role="user", content="x") | {"tools": [{}] * MILLION}, "tools", TOO_LARGE),
        (CHAT, lambda: message(role="user", content="x", name="n" * 2000), "messages[2].name",
         "string_above_max_length"),
        (RESPONSES, lambda: {"input": "x" * MILLION}, "input", TOO_LONG),
        (RESPONSES, lambda: {"input": [{}] * MILLION}, "input", TOO_LONG),
        (RESPONSES, lambda: {"input": [{"role": "user", "content": "x" * 99}] * 99}, "input", TOO_LONG),
        (RESPONSES, lambda: {"input": [{"role": "user", "content": [{}] * MILLION}]}, "input", TOO_LONG),
        (RESPONSES, lambda: {"input": "x", "instructions": "x" * MILLION}, "instructions", TOO_LONG),
        (RESPONSES, lambda: {"input": [CALL | {"arguments": "[" * MILLION}]}, "input[0].arguments", TOO_LARGE),
        (RESPONSES, lambda: {"input": [CALL | {"arguments": "x" * MILLION}]}, "input", TOO_LONG),
        (RESPONSES, lambda: {"input": "x", "metadata": {"a": "x" * MILLION}}, "metadata", TOO_LARGE),
        (RESPONSES, lambda: {"input": "x", "text": {"format": deep(200)}}, "text", TOO_LARGE),
        (RESPONSES, lambda: {"input": "x", "tools": [{}] * MILLION}, "tools", TOO_LARGE),
        (RESPONSES, lambda: {"input": "x", "previous_response_id": "r" * 2000}, "previous_response_id",
         "string_above_max_length"),
    ],
)  # fmt: skip
def test_more_than_could_be_served_is_refused(
    http: httpx2.Client, server: LiveServer, path: str, body: Any, param: str, code: str
) -> None:
    assert refused(http, path, body()) == (param, code)
    assert not server.engine.prompts


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (lambda: {"messages": [{"role": "user", "content": LONE}]}, "messages[0].content holds half of a surrogate"),
        (lambda: {"system": LONE}, "system holds half of a surrogate"),
        (lambda: {"messages": [{"role": "user", "content": "x" * MILLION}]}, "shorten it"),
        (lambda: {"messages": [{}] * MILLION}, "leave some out"),
        (lambda: {"messages": [{"role": "user", "content": [{}] * MILLION}]}, "leave some out"),
        (lambda: {"messages": [{"role": "user", "content": [BLOCK | {"text": "x" * 99}] * 99}]}, "shorten it"),
        (lambda: {"messages": [{"role": "assistant", "content": [USE | {"input": {"a": [0] * MILLION}}]}]},
         "hold more than can be read"),
        (lambda: {"messages": [{"role": "assistant", "content": [USE | {"input": {"a": deep(100)}}]}]}, "deeper than"),
        (lambda: {"messages": [{"role": "user", "content": [{"type": "x" * MILLION}]}]}, "too large"),
        (lambda: {"system": "x" * MILLION}, "shorten it"),
        (lambda: {"system": [{}] * MILLION}, "leave some out"),
        (lambda: {"stop_sequences": ["a" * 300_000] * 128}, "stop_sequences is too large"),
        (lambda: {"tools": [{}] * MILLION}, "tools is too large"),
        (lambda: {"thinking": {"type": "x" * MILLION}}, "thinking is too large"),
        (lambda: {"output_config": {"format": deep(200)}}, "output_config is too large"),
    ],
)  # fmt: skip
def test_messages_beyond_what_could_be_served(http: httpx2.Client, server: LiveServer, fields: Any, said: str) -> None:
    """Anthropic's errors name the field in their message."""
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3} | fields()
    answer = post(http, MESSAGES, body)
    assert answer.status_code == 400 and said in answer.json()["error"]["message"], answer.text[:300]
    assert not server.engine.prompts and len(answer.text) < 1000


BLOCK = {"type": "text", "text": "x"}
USE = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
CALL = {"type": "function_call", "call_id": "a", "name": "f"}


def deep(levels: int) -> list[Any]:
    nested: list[Any] = []
    for _ in range(levels):
        nested = [nested]
    return nested


def test_what_is_not_known_is_never_built(http: httpx2.Client) -> None:
    unknown = b'{"prompt": "x", "max_tokens": 1, "zzz": [' + b"{}," * 5 * MILLION + b"{}]}"
    assert post(http, COMPLETIONS, unknown).status_code == 200


def test_a_refusal_quotes_little_of_what_was_sent(http: httpx2.Client) -> None:
    long = "🦆'\"\\\n" * 150
    answer = error_of(post(http, COMPLETIONS, {"prompt": "x", "model": long}), 404)
    assert answer["param"] == "model" and len(answer["message"]) < 400
    part = message(role="user", content=[{"type": long, "text": "x"}])
    assert len(error_of(post(http, CHAT, part), 400)["message"]) < 400
    assert len(error_of(http.get("/" + "x" * 3000), 404)["message"]) < 400


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"max_completion_tokens": 600}, "max_completion_tokens"),
        ({"max_completion_tokens": 510}, "max_completion_tokens"),
        ({"max_tokens": 510}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"ttft_slo_ms": 0}, "ttft_slo_ms"),
    ],
)
def test_errors_name_the_clients_own_field(http: httpx2.Client, body: dict[str, Any], param: str) -> None:
    error = error_of(post(http, CHAT, message(role="user", content="x") | body), 400)
    assert error["param"] == param and param in error["message"]


# -- the reader by itself


def read(body: bytes, kind: type[RequestFields] = CompletionRequest) -> Any:
    return BodyReader(BOUNDS).read(body, "application/json", kind)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


KINDS: dict[type[RequestFields], dict[str, Any]] = {
    CompletionRequest: {"prompt": "x"},
    ChatCompletionRequest: {"messages": [{"role": "user", "content": "x"}]},
    ResponsesRequest: {"input": "x"},
    MessagesRequest: {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3},
    CountTokensRequest: {"messages": [{"role": "user", "content": "x"}]},
}


@given(data=st.data())
@pytest.mark.parametrize("kind", KINDS)
def test_any_value_in_any_field_is_taken_or_refused(kind: type[RequestFields], data: st.DataObject) -> None:
    names = st.sampled_from([*kind.model_fields, *kind.unsupported])
    body = KINDS[kind] | data.draw(st.dictionaries(names, json_values, max_size=3))
    try:
        request = read(json.dumps(body).encode(), kind)
        request.check()
        if isinstance(request, ResponsesRequest):
            request.task([], {}, thinks=True)
        if isinstance(request, MessagesRequest):
            request.task({}, thinks=True)
    except RequestError as error:
        assert error.code and str(error)


PARTS = ("type", "role", "id", "content", "text", "input", "name", "tool_use_id", "thinking", "call_id", "arguments",
         "output", "summary", "refusal")  # fmt: skip
WORDS = st.sampled_from(("user", "assistant", "system", "text", "tool_use", "tool_result", "thinking", "message",
                         "function_call", "function_call_output", "reasoning", "input_text", "x"))  # fmt: skip
items = st.recursive(
    json_values | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(PARTS), inner | WORDS, max_size=5),
    max_leaves=12,
)


@given(conversation=st.lists(st.dictionaries(st.sampled_from(PARTS), items | WORDS, max_size=5), max_size=3))
def test_any_conversation_is_taken_or_refused(conversation: list[Any]) -> None:
    for kind, name in ((ResponsesRequest, "input"), (MessagesRequest, "messages"), (ChatCompletionRequest, "messages")):
        body = KINDS[kind] | {name: conversation}
        try:
            request = read(json.dumps(body).encode(), kind)
            request.check()
            before = ([],) if kind is ResponsesRequest else ()
            task = request.task(*before, {}, thinks=True)
            assert all(isinstance(message["content"], str) for message in task.messages)
        except RequestError as error:
            assert error.code and str(error)


@given(st.binary(max_size=60))
def test_any_bytes_are_refused_in_words(body: bytes) -> None:
    with pytest.raises(RequestError) as refused:
        read(body)
    assert refused.value.code


@given(before=st.text(max_size=20), after=st.text(max_size=20), half=st.integers(0xD800, 0xDFFF))
def test_a_lone_surrogate_is_found(before: str, after: str, half: int) -> None:
    fine = json.dumps({"a": [before, {"b": after}]}).encode()
    assert lone_surrogate(fine) is None
    head = json.dumps({"a": [before, {"b": before}]}).encode()[:-4]
    broken = head + b"\\u%04x" % half + b" " + json.dumps(after).encode()[1:] + b"}]}"
    assert lone_surrogate(broken) == len(head)
    assert place_of(broken, len(head)) == "a[1].b"


@given(st.binary(max_size=30))
def test_the_first_byte_that_is_not_utf8(data: bytes) -> None:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        assert bad_utf8(data) == error.start
    else:
        assert bad_utf8(data) is None
