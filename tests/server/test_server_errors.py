"""Every way to be refused, in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from longspan.errors import EngineDeadError, ModelOutputError, QueueFullError
from tests.server.fake_engine import MODEL
from tests.server.live_server import LiveServer, live_server

CHAT = {"messages": [{"role": "user", "content": "x"}]}


def error_of(answer: httpx2.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.headers["x-request-id"]
    (error,) = answer.json().values()
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and isinstance(error["type"], str)
    fields: dict[str, Any] = error
    return fields


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({}, "prompt", "Field required"),
        ({"prompt": 3}, "prompt", "must be a text"),
        ({"prompt": []}, "prompt", "not empty"),
        ({"prompt": ["a", 1]}, "prompt[1]", "must be"),
        ({"prompt": [True]}, "prompt", "must be"),
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": [300]}, "prompt", "vocabulary"),
        ({"prompt": [-1]}, "prompt", "no token id"),
        ({"prompt": "x", "n": 0}, "n", "greater than or equal to 1"),
        ({"prompt": "x", "n": 65}, "n", "at most 64"),
        ({"prompt": "x", "max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
        ({"prompt": "x", "temperature": 3}, "temperature", "less than or equal to 2"),
        ({"prompt": "x", "top_p": 0}, "top_p", "greater than 0"),
        ({"prompt": "x", "top_k": 10**400}, "top_k", "less than or equal"),
        ({"prompt": "x", "logprobs": 21}, "logprobs", "less than or equal to 20"),
        ({"prompt": "x", "stop": [""]}, "stop[0]", "at least 1 character"),
        ({"prompt": "x", "seed": 0.5}, "seed", "valid integer"),
        ({"prompt": "x", "echo": 1}, "echo", "valid boolean"),
        ({"prompt": "x", "prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "not streamed"),
        ({"prompt": "x", "suffix": "y"}, "suffix", "not supported"),
        ({"prompt": "x", "best_of": 3}, "best_of", "not supported"),
        ({"prompt": "x", "logit_bias": {"1": 101}}, "logit_bias", "must lie in [-100, 100]"),
        ({"prompt": "x", "logit_bias": {"x" * 5000: 1}}, "logit_bias", "token ids"),
        ({"prompt": "x", "logit_bias": {"1": True}}, "logit_bias", "a number"),
        ({"prompt": "x", "min_tokens": 17}, "min_tokens", "[0, 16]"),
        ({"prompt": "x", "stream_options": {"include_usage": True}}, "stream_options", "stream"),
    ],
)
def test_bad_completions(http: httpx2.Client, body: dict[str, Any], param: str, says: str) -> None:
    error = error_of(http.post("/v1/completions", json=body), 400)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert says in error["message"]


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "Field required"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "'user'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content",
            "part 0 is of type 'image_url'",
        ),
        (
            {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]},
            "messages[0].tool_calls[0]",
            "missing required field `function`",
        ),
        (CHAT | {"tools": [{"type": "function"}]}, "tools[0].function", "Field required"),
        (CHAT | {"tool_choice": "required"}, "tool_choice", "needs tools"),
        (CHAT | {"response_format": {"type": "xml"}}, "response_format.type", "json_object"),
        (CHAT | {"modalities": ["audio"]}, "modalities", "not supported"),
        (CHAT | {"functions": [{}]}, "functions", "not supported"),
        (CHAT | {"top_logprobs": 3}, "top_logprobs", "needs logprobs"),
        (CHAT | {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "20"),
        ({"messages": [{"role": "user", "content": ""}], "n": 129}, "n", "128"),
    ],
)
def test_bad_chats(http: httpx2.Client, body: dict[str, Any], param: str, says: str) -> None:
    error = error_of(http.post("/v1/chat/completions", json=body), 400)
    assert error["param"] == param
    assert says in error["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long(client: openai.OpenAI, http: httpx2.Client, stream: bool) -> None:
    answer = http.post("/v1/completions", json={"prompt": "x" * 512, "max_tokens": None, "stream": stream})
    error = error_of(answer, 400)
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")
    assert "512" in error["message"]
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x" * 600}])
    assert (refused.value.param, refused.value.code) == ("messages", "context_length_exceeded")


def test_bodies_that_are_not_json(http: httpx2.Client) -> None:
    url = "/v1/completions"
    json = {"content-type": "application/json"}
    assert error_of(http.post(url, content=b'{"prompt": ', headers=json), 400)["code"] == "invalid_json"
    assert "Content-Type" in error_of(http.post(url, content=b'{"prompt": "x"}'), 400)["message"]
    error_of(http.post(url, content=b"", headers=json), 400)
    error_of(http.post(url, content=b"[1]", headers=json), 400)
    error_of(http.post(url, content=b"[" * 100_000, headers=json), 400)
    error_of(http.post(url, content=b"\xff\xfe", headers=json), 400)


@pytest.mark.parametrize("field", ["prompt", "model"])
def test_a_lone_surrogate_is_a_mistake_not_a_crash(http: httpx2.Client, field: str) -> None:
    content = b'{"prompt": "x", "%s": "a\\ud800"}' % field.encode()
    answer = http.post("/v1/completions", content=content, headers={"content-type": "application/json"})
    assert error_of(answer, answer.status_code)["param"] == field
    assert answer.status_code in (400, 404)


def test_unknown_model(client: openai.OpenAI, http: httpx2.Client) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.completions.create(model="nope", prompt="x")
    assert refused.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("org/nope")
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "longspan"
    assert http.get("/v1/models").json()["data"][0]["max_model_len"] == 512


def test_unknown_paths_and_methods(http: httpx2.Client) -> None:
    for path in ("/dashboard", "/v1", "/v1/nope", "/v1/completions/", "/tokenizer_info/", "/docs"):
        assert error_of(http.get(path), 404)["code"] == "unknown_url"
    refused = http.get("/v1/completions")
    assert error_of(refused, 405)["code"] == "method_not_allowed"
    assert refused.headers["allow"] == "POST"
    error_of(http.delete("/health"), 405)


def test_the_schema_does_not_promise_other_errors(http: httpx2.Client) -> None:
    operation = http.get("/openapi.json").json()["paths"]["/v1/completions"]["post"]
    assert set(operation["responses"]) == {"200", "4XX", "5XX"}


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_says_when_to_come_back(server: LiveServer, http: httpx2.Client, stream: bool) -> None:
    server.engine.refuse = QueueFullError("1024 requests wait", retry_after_s=2.2)
    for path, body in (("/v1/completions", {"prompt": ["x", "y"]}), ("/v1/chat/completions", CHAT)):
        refused = http.post(path, json=body | {"stream": stream})
        assert error_of(refused, 429)["code"] == "rate_limit_exceeded"
        assert refused.headers["retry-after"] == "3"


@pytest.mark.parametrize("stream", [False, True])
def test_a_dead_engine(server: LiveServer, http: httpx2.Client, stream: bool) -> None:
    assert http.get("/health").json() == {"status": "ok"}
    server.engine.die("worker 1 is gone")
    assert "worker 1" in error_of(http.get("/health"), 503)["message"]
    error_of(http.get("/ready"), 503)
    refused = http.post("/v1/completions", json={"prompt": "x", "stream": stream})
    assert error_of(refused, 503)["code"] == "engine_dead"


def test_health_names_the_instances_that_are_missing(server: LiveServer, http: httpx2.Client) -> None:
    server.engine.missing[1] = "worker 1 is gone"
    health = http.get("/health")
    assert health.status_code == 200
    assert health.json() == {"status": "degraded", "missing": "instance 1 (starting): worker 1 is gone"}
    assert http.get("/ready").status_code == 200
    server.engine.missing.clear()
    assert http.get("/health").json() == {"status": "ok"}


def test_draining(server: LiveServer, http: httpx2.Client) -> None:
    assert http.get("/ready").json() == {"status": "ready"}
    server.engine.draining = True
    assert error_of(http.get("/ready"), 503)["code"] == "server_draining"
    assert http.get("/health").json() == {"status": "draining"}
    assert error_of(http.post("/v1/chat/completions", json=CHAT), 503)["code"] == "server_draining"


def test_an_answer_cut_short_is_an_error(
    server: LiveServer, http: httpx2.Client, client: openai.OpenAI
) -> None:
    server.engine.cut_after = 3
    error_of(http.post("/v1/completions", json={"prompt": "x"}), 503)
    with pytest.raises(openai.APIError, match="cut short"):
        list(client.completions.create(model=MODEL, prompt="x", stream=True))


def test_our_own_bug_is_a_500(server: LiveServer, http: httpx2.Client) -> None:
    server.engine.fail_after = (2, ZeroDivisionError("secret"), None)
    answer = http.post("/v1/completions", json={"prompt": "x"}, headers={"X-Request-Id": "mine"})
    error = error_of(answer, 500)
    assert error["code"] == "internal_error" and "secret" not in error["message"]
    assert answer.headers["x-request-id"] == "mine"


def test_logits_that_are_not_finite_are_the_requests_own_error(
    server: LiveServer, http: httpx2.Client, client: openai.OpenAI
) -> None:
    server.engine.fail_after = (2, ModelOutputError("the model's logits are not finite"), "bad")
    error = error_of(http.post("/v1/completions", json={"prompt": "bad"}), 500)
    assert (error["code"], error["message"]) == ("model_output_error", "the model's logits are not finite")
    with pytest.raises(openai.APIError, match="not finite"):
        list(client.completions.create(model=MODEL, prompt="bad", stream=True))
    assert http.post("/v1/completions", json={"prompt": "good"}).status_code == 200
    assert http.get("/health").json() == {"status": "ok"}


def test_a_failing_stream_says_so(server: LiveServer, http: httpx2.Client, client: openai.OpenAI) -> None:
    server.engine.fail_after = (2, EngineDeadError("worker 1 is gone"), None)
    text = ""
    with pytest.raises(openai.APIError, match="worker 1 is gone"):
        for chunk in client.completions.create(model=MODEL, prompt="x", stream=True):
            text += chunk.choices[0].text
    assert text == "He"
    events = http.post("/v1/completions", json={"prompt": "x", "stream": True}).text.split("\n\n")
    assert '"code":"engine_dead"' in events[2]
    assert events[3:] == ["data: [DONE]", ""]


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_of_one_choice_ends_the_others(
    server: LiveServer, http: httpx2.Client, stream: bool
) -> None:
    server.engine.answer = "a" * 400
    server.engine.fail_after = (2, EngineDeadError("worker 1 is gone"), "bad")
    answer = http.post(
        "/v1/completions", json={"prompt": ["x", "bad", "y"], "max_tokens": 400, "stream": stream}
    )
    assert "engine_dead" in answer.text
    ends = dict(server.engine.ended.get(timeout=30) for _ in range(3))
    assert sorted(ends.values()) == ["aborted", "aborted", "failed"]


@pytest.fixture(scope="module")
def small() -> Iterator[LiveServer]:
    with live_server(max_body_mb=0.5) as server:
        yield server


@pytest.mark.parametrize("size", [600_000, 5_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large(small: LiveServer, size: int, chunked: bool) -> None:
    body = b'{"prompt": "' + b"x" * size + b'"}'
    pieces = (body[start : start + 65536] for start in range(0, len(body), 65536))
    with httpx2.Client(base_url=small.url, timeout=30, trust_env=False) as http:
        headers = {"content-type": "application/json"}
        try:
            answer = http.post("/v1/completions", content=pieces if chunked else body, headers=headers)
        except httpx2.TransportError:
            assert size == 5_000_000  # far beyond the limit the server hangs up on who does not listen
        else:
            assert error_of(answer, 413)["code"] == "request_too_large"
            assert answer.headers["connection"] == "close"
        fine = http.post("/v1/completions", json={"prompt": "x"})
        assert fine.status_code == 200
    assert len(small.engine.prompts) > 0 and max(map(len, small.engine.prompts.values())) == 1


def test_a_client_that_asks_first_is_told_before_it_sends(small: LiveServer) -> None:
    import socket

    with socket.create_connection(("127.0.0.1", small.port), timeout=30) as sock:
        sock.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 1000000000\r\nExpect: 100-continue\r\n\r\n"
        )
        answer = b""
        while piece := sock.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 413") and b"request_too_large" in answer
