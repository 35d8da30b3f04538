"""Fields that say what an answer must look like: how they are read, and refused."""

from __future__ import annotations

import json

import httpx2
import openai
import pytest
from pydantic import BaseModel

from longspan.errors import RequestError
from longspan.structured_outputs import StructuredOutputs
from tests.server.fake_engine import MODEL
from tests.server.live_server import LiveServer

SCHEMA = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "integer"}}}
TEXT = json.dumps(SCHEMA, separators=(",", ":"))
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "x"}]}
COMPLETION = {"model": MODEL, "prompt": "x"}
BOTH = pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)])


@BOTH
@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}},
         {"json": TEXT}),
        ({"response_format": {"type": "json_object"}}, {"json_object": True}),
        ({"structured_outputs": {"json": SCHEMA, "disable_fallback": False}}, {"json": TEXT}),
        ({"structured_outputs": {"json": "{}", "regex": None}}, {"json": "{}"}),
        ({"structured_outputs": {"json_object": True}}, {"json_object": True}),
        ({"structured_outputs": {"choice": ["a", "b"]}}, {"choice": ("a", "b")}),
        ({"structured_outputs": {"grammar": "start: X"}}, {"grammar": "start: X"}),
        ({"guided_json": SCHEMA}, {"json": TEXT}),
        ({"guided_json": "{}"}, {"json": "{}"}),
        ({"guided_regex": "a+"}, {"regex": "a+"}),
        ({"guided_choice": ["a"]}, {"choice": ("a",)}),
        ({"guided_grammar": "start: X", "response_format": {"type": "text"}}, {"grammar": "start: X"}),
    ],
)  # fmt: skip
def test_every_way_to_ask(
    server: LiveServer, http: httpx2.Client, path: str, body: dict, fields: dict, wanted: dict
) -> None:
    answer = http.post(path, json=body | fields)
    assert answer.status_code == 200, answer.text
    (params,) = server.engine.params.values()
    assert params.structured_outputs == StructuredOutputs(**wanted)


@BOTH
@pytest.mark.parametrize(
    "fields",
    [{"response_format": {"type": "text"}}, {"response_format": None}, {"structured_outputs": {}},
     {"guided_json": None}, {"structured_outputs": {"json": None, "json_object": False}}],
)  # fmt: skip
def test_what_asks_for_nothing(server: LiveServer, http: httpx2.Client, path: str, body: dict, fields: dict) -> None:
    assert http.post(path, json=body | fields).status_code == 200
    assert [params.structured_outputs for params in server.engine.params.values()] == [None]


def _nested(levels: int) -> dict:
    schema: dict = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


@BOTH
@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing_required_parameter"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
         "response_format.json_schema.schema", "missing_required_parameter"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "unsupported_value"),
        ({"response_format": "json"}, "response_format", "invalid_type"),
        ({"guided_json": 7}, "guided_json", "invalid_type"),
        ({"guided_choice": []}, "guided_choice", "empty_array"),
        ({"guided_choice": ["a"], "guided_regex": "b"}, "guided_choice", "invalid_value"),
        ({"structured_outputs": {"regex": "a", "json_object": True}}, "structured_outputs", "invalid_value"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag", "invalid_value"),
        ({"structured_outputs": {"json": {}, "disable_any_whitespace": True}},
         "structured_outputs.disable_any_whitespace", "invalid_value"),
        ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern", "unsupported_parameter"),
        ({"guided_regex": "a" * 70_000}, "guided_regex", "value_too_large"),
        ({"guided_json": {"description": "a" * 200_000}}, "guided_json", "value_too_large"),
        ({"guided_json": _nested(120)}, "guided_json", "value_too_large"),
    ],
)  # fmt: skip
def test_what_is_refused(http: httpx2.Client, path: str, body: dict, fields: dict, param: str, code: str) -> None:
    answer = http.post(path, json=body | fields)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"].removesuffix(".dict").partition("[")[0], error["code"]) == (param, code), error


@BOTH
def test_what_the_engine_refuses_is_told_in_the_clients_words(
    server: LiveServer, http: httpx2.Client, monkeypatch: pytest.MonkeyPatch, path: str, body: dict
) -> None:
    async def prepare(params: object) -> None:
        raise RequestError("structured_outputs: at /a: no", param="structured_outputs", code="invalid_grammar")

    monkeypatch.setattr(server.engine, "prepare", prepare, raising=False)
    for stream in (False, True):
        answer = http.post(path, json=body | {"stream": stream, "response_format": {"type": "json_object"}})
        assert answer.status_code == 400
        assert answer.json()["error"] == {"message": "response_format: at /a: no", "type": "invalid_request_error",
                                          "param": "response_format", "code": "invalid_grammar"}  # fmt: skip
    assert not server.engine.params


def test_parse_of_the_sdk(client: openai.OpenAI, server: LiveServer) -> None:
    class Answer(BaseModel):
        city: str

    server.engine.answer = '{"city": "Paris"}'
    answer = client.chat.completions.parse(
        model=MODEL, messages=[{"role": "user", "content": "x"}], response_format=Answer
    )
    assert answer.choices[0].message.parsed == Answer(city="Paris")
    (params,) = server.engine.params.values()
    assert params.structured_outputs and json.loads(params.structured_outputs.text)["required"] == ["city"]
