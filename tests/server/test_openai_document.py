"""Every answer, and every chunk, is one by OpenAI's document and by the types of its SDK."""

from __future__ import annotations

import itertools
import json
from typing import Any

import httpx2
import openai.types.chat
import pytest
from pydantic import BaseModel

from tests.server import openai_document as document
from tests.server.fake_engine import MODEL, NO_TEXT_YET
from tests.server.live_server import LiveServer

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]}
COMPLETION: dict[str, Any] = {"prompt": "x"}
VARIANTS = [
    {"n": n, "max_tokens": max_tokens} | usage
    for n, max_tokens, usage in itertools.product(
        (1, 2), (3, 100), ({}, {"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True})
    )
]


def all_answers(http: httpx2.Client, path: str, body: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """Whole ones and chunks, of every combination of what changes their shape."""
    whole, chunks = [], []
    for variant, logprobs in itertools.product(VARIANTS, (False, True)):
        fields = {name: variant[name] for name in ("n", "max_tokens")} | body
        if logprobs:
            fields |= {"logprobs": True, "top_logprobs": 2} if "messages" in body else {"logprobs": 2}
        options = {name: value for name, value in variant.items() if name not in fields}
        if not options:
            answer = http.post(path, json=fields)
            assert answer.status_code == 200
            whole.append(answer.json())
        text = http.post(path, json=fields | {"stream": True} | ({"stream_options": options} if options else {})).text
        *events, done, end = text.split("\n\n")
        assert (done, end) == ("data: [DONE]", "")
        chunks += [json.loads(event.removeprefix("data: ")) for event in events]
    return whole, chunks


def check_all(answers: list[Any], schema: document.Schema, kind: type[BaseModel]) -> None:
    assert answers
    for answer in answers:
        document.check(answer, schema)
        kind.model_validate(answer, strict=True)


def test_chats(http: httpx2.Client, server: LiveServer) -> None:
    server.engine.answer = f"é{NO_TEXT_YET}llo"
    whole, chunks = all_answers(http, "/v1/chat/completions", CHAT)
    check_all(whole, document.CHAT, openai.types.chat.ChatCompletion)
    check_all(chunks, document.CHAT_CHUNK, openai.types.chat.ChatCompletionChunk)
    assert len(chunks) > 100
    fingerprints = {answer["system_fingerprint"] for answer in whole + chunks}
    assert fingerprints == {server.engine.fingerprint}


def test_completions(http: httpx2.Client, server: LiveServer) -> None:
    server.engine.answer = f"é{NO_TEXT_YET}llo"
    whole, chunks = all_answers(http, "/v1/completions", COMPLETION)
    check_all(whole, document.COMPLETION, openai.types.Completion)
    for chunk in chunks:
        document.check(chunk, document.COMPLETION_CHUNK)
        for choice in chunk["choices"]:
            choice["finish_reason"] = choice["finish_reason"] or "stop"  # the SDK does not know of null
        openai.types.Completion.model_validate(chunk, strict=True)
    assert {answer["system_fingerprint"] for answer in whole + chunks} == {server.engine.fingerprint}


def test_models(http: httpx2.Client) -> None:
    document.check(http.get("/v1/models").json(), document.MODELS)
    document.check(http.get(f"/v1/models/{MODEL}").json(), document.MODEL)
    openai.types.Model.model_validate(http.get(f"/v1/models/{MODEL}").json(), strict=True)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {}),
        ("/v1/completions", {"prompt": "x", "model": "nope"}),
        ("/v1/chat/completions", CHAT | {"tools": [{}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 10_000}]}),
        ("/nope", {}),
        ("/v1/models", {}),
    ],
)
def test_errors(http: httpx2.Client, path: str, body: dict[str, Any]) -> None:
    document.check(http.post(path, json=body).json(), document.ERROR)


def test_the_schemas_can_refuse() -> None:
    """The document's own words are in force: null where a text must be, a word that is not allowed."""
    good = {
        "id": "a", "created": 1, "model": "m", "object": "chat.completion.chunk", "system_fingerprint": "fp",
        "choices": [{"index": 0, "delta": {}, "finish_reason": None}],
    }  # fmt: skip
    document.check(good, document.CHAT_CHUNK)
    for wrong in ({"system_fingerprint": None}, {"object": "chunk"}, {"choices": [{"index": 0, "delta": {}}]}):
        with pytest.raises(ValueError):
            document.check(good | wrong, document.CHAT_CHUNK)
