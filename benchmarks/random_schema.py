"""JSON schemas out of a grammar of what people write: objects, arrays, numbers, texts, choices, references."""

from __future__ import annotations

import random
from typing import Any

Schema = dict[str, Any]

_NAMES = ("id", "name", "count", "tags", "price", "when", "kind", "notes", "parts", "active", "größe", "a b", 'x"y')
_PATTERNS = (r"^[A-Z]{2}-[0-9]{3}$", r"^[a-z]+(-[a-z]+)*$", r"^\d{1,3}(\.\d{1,3}){3}$", r"^#[0-9a-f]{6}$")
_FORMATS = ("date", "time", "date-time", "uuid", "email", "ipv4")


def random_schema(seed: int) -> Schema:
    """Return a schema whose root is an object; some are recursive."""
    rng = random.Random(seed)
    schema = _object(rng, depth=3)
    if rng.random() < 0.2:
        schema["properties"]["tree"] = {"$ref": "#/$defs/node"}
        schema["$defs"] = {"node": {
            "type": "object", "additionalProperties": False, "required": ["value"],
            "properties": {"value": _scalar(rng), "children": {
                "type": "array", "maxItems": 2, "items": {"$ref": "#/$defs/node"}}},
        }}  # fmt: skip
    return schema


def _any(rng: random.Random, depth: int) -> Schema:
    if depth == 0 or rng.random() < 0.5:
        return _scalar(rng)
    return rng.choice((_object, _array, _any_of))(rng, depth - 1)


def _object(rng: random.Random, depth: int) -> Schema:
    names = rng.sample(_NAMES, rng.randint(1, 4))
    return {
        "type": "object",
        "properties": {name: _any(rng, depth) for name in names},
        "required": [name for name in names if rng.random() < 0.7],
        "additionalProperties": False,
    }


def _array(rng: random.Random, depth: int) -> Schema:
    least = rng.randint(0, 2)
    return {"type": "array", "items": _any(rng, depth), "minItems": least, "maxItems": least + rng.randint(0, 3)}


def _any_of(rng: random.Random, depth: int) -> Schema:
    return {"anyOf": [_any(rng, depth) for _ in range(rng.randint(2, 3))]}


def _scalar(rng: random.Random) -> Schema:
    low = rng.randint(-50, 50)
    return rng.choice((
        {"type": "string", "maxLength": rng.randint(1, 20)},
        {"type": "string", "minLength": 2, "maxLength": 6},
        {"type": "string", "pattern": rng.choice(_PATTERNS), "maxLength": 20},
        {"type": "string", "format": rng.choice(_FORMATS)},
        {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 1000)},
        {"type": "number", "exclusiveMinimum": low, "maximum": low + 1},
        {"type": ["boolean", "null"]},
        {"enum": rng.sample(["red", "green", "blue", 1, 2.5, None, True], rng.randint(1, 4))},
        {"const": rng.choice(["fixed", 7, False])},
    ))  # fmt: skip
