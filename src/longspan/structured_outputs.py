"""What a request's output must look like: a JSON schema, a regular expression, a choice of texts, or a grammar."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from longspan.errors import RequestError

MAX_BYTES = 65536
MAX_CHOICES = 4096
_KINDS = ("json", "json_object", "regex", "choice", "grammar")


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputs:
    """What the output must look like, in one of these ways; the names are vLLM's.

    json: a JSON schema, as its text or as Python values. json_object: any JSON object. regex: a regular expression
    that matches all of it. choice: one of these texts. grammar: a grammar as llguidance reads it, Lark or GBNF.
    after: anything may come first, up to this text and with it, such as what a model thinks: `</think>`.

    Raises:
        RequestError: there is none of these, or more than one; or it is of another type, or too long.
    """

    json: str | None = None
    json_object: bool = False
    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None
    after: str = ""

    def __post_init__(self) -> None:
        given = [name for name in _KINDS if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            told = " and ".join(given) if given else "none of them"
            raise _error(f"structured_outputs takes one of {', '.join(_KINDS)}, not {told}")
        if given == ["json"] and not isinstance(self.json, str):
            object.__setattr__(self, "json", _as_text(self.json))
        if given == ["choice"]:
            object.__setattr__(self, "choice", _choices(self.choice))
        elif given != ["json_object"] and not isinstance(getattr(self, given[0]), str):
            raise _error(f"structured_outputs.{given[0]} must be a text")
        elif self.json_object not in (True, False):
            raise _error("structured_outputs.json_object must be True or False")
        if (size := len(self.text.encode("utf-8", "replace"))) > MAX_BYTES:
            raise RequestError(
                f"structured_outputs.{given[0]} has {size} bytes, but at most {MAX_BYTES} are read",
                param="structured_outputs", code="value_too_large",
            )  # fmt: skip

    @property
    def kind(self) -> str:
        """The one field that is given."""
        return next(name for name in _KINDS if getattr(self, name) not in (None, False))

    @property
    def text(self) -> str:
        """The value of that field: choices as a JSON array, a JSON object as the schema that takes any."""
        if self.json_object:
            return '{"type":"object"}'
        if self.choice is not None:
            return json.dumps(self.choice)
        text: str = getattr(self, self.kind)
        return text


def _as_text(schema: Any) -> str:
    if not isinstance(schema, Mapping):
        raise _error("structured_outputs.json must be a JSON schema: its text, or a dict")
    try:
        return json.dumps(schema)
    except (TypeError, ValueError, RecursionError) as error:
        raise _error(f"structured_outputs.json is not JSON: {error}") from None


def _choices(choice: Any) -> tuple[str, ...]:
    texts = tuple(choice) if isinstance(choice, Iterable) and not isinstance(choice, str | Mapping) else ()
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise _error("structured_outputs.choice must be texts, one at least, none of them empty")
    if len(texts) > MAX_CHOICES:
        raise _error(f"structured_outputs.choice has {len(texts)} texts, but at most {MAX_CHOICES} are read")
    return texts


def _error(message: str) -> RequestError:
    return RequestError(message, param="structured_outputs", code="invalid_value")
