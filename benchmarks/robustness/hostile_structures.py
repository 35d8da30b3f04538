"""What answers must look like, in ways that are wrong, ambiguous, endless, deep, or large."""

from __future__ import annotations

import json
from typing import Any


def _json(*values: Any) -> tuple[bytes, ...]:
    return tuple(json.dumps(value).encode() for value in values)


def _schema(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"schema": schema}}


def _nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


_CHAIN = "start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(4000)) + 'r4000: "x"\n'
_OBJECTS = [{"type": "object", "properties": {"k": {"const": i}, "v": {"type": "number"}}} for i in range(600)]

STRUCTURES: dict[str, tuple[bytes, ...]] = {
    "response_format": _json(
        {"type": "json_schema"}, {"type": "json_object"}, _schema({"$ref": "#"}), _schema(_nested(90)),
        _schema(_nested(200)), _schema({"enum": [f"word {i}" for i in range(4000)]}), _schema({"anyOf": _OBJECTS}),
    ),
    "structured_outputs": _json(
        {"regex": "(a|"}, {"json": {}, "regex": "a"}, {"structural_tag": "{}"}, {"choice": [""]}, {"json": [1]}
    ),
    "guided_json": _json(
        {"type": "string", "maxLength": 10**6}, {"type": "array", "minItems": 10**9}, "{",
        {"type": "integer", "minimum": 123456789, "maximum": 10**18, "multipleOf": 7919},
    ),
    "guided_regex": (
        *_json("(x+x+)+y", "((a{0,100}){0,100}){0,100}", "[a-z]{1,60000}", r"\p{L}{1,300}", "a" * 65000),
        b'"\\ud800"',
    ),
    "guided_choice": (*_json([], ["a"] * 4000, ["b" * 60000]), b'["\\ud800"]'),
    "guided_grammar": _json('start: s\ns: s s | "a" | "b"\n', 'start: s\ns: s s s | "a" | \n', _CHAIN, "start: ("),
}  # fmt: skip
