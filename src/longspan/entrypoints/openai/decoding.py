"""From a body's bytes to a checked request: everything is measured before it is built.

The body is cut into its fields without building any of them; each field that is known is bounded by its bytes, counted,
and only then decoded; unknown ones are never decoded. What comes out of here can travel on: finite numbers, whole
Unicode, lists of a bounded length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from msgspec import Raw
from pydantic import ValidationError

from longspan.entrypoints.openai.body_fields import cut_body
from longspan.entrypoints.openai.bounds import MAX_DEPTH, MAX_ENVELOPE_BYTES, MAX_SCHEMA_DEPTH, MAX_STOPS_CHARS, Bounds
from longspan.entrypoints.openai.json_values import bounded, scalar
from longspan.entrypoints.openai.message_decoding import messages
from longspan.entrypoints.openai.problems import request_error
from longspan.entrypoints.openai.prompt_decoding import output_ids, prompts
from longspan.entrypoints.openai.request_fields import Decode, RequestFields
from longspan.entrypoints.openai.structure import STRUCTURE_FIELDS
from longspan.entrypoints.openai.unsupported import refuse_unsupported
from longspan.errors import RequestError
from longspan.structured_outputs import MAX_BYTES

R = TypeVar("R", bound=RequestFields)

LARGE_BODY = 32 * 1024
"""Bytes; a body beyond them is worth a thread."""
STRUCTURE_BYTES = 2 * MAX_BYTES  # what is kept of it has at most half of them

STOPS_BYTES = MAX_STOPS_CHARS * 12
_TOOLS_BYTES = 2**20
_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


@dataclass(frozen=True, slots=True)
class BodyReader:
    """Turns bodies into requests, within the bounds of one server. Threads may share one."""

    bounds: Bounds

    def read(self, body: bytes | bytearray, content_type: str, kind: type[R]) -> R:
        """Raises RequestError, which names the field."""
        fields = self._decoded(cut_body(body, content_type, kind), kind)
        try:
            request = kind.model_validate(fields)
        except ValidationError as error:
            raise request_error(error) from None
        self._check_limits(fields)
        return request

    def _check_limits(self, fields: Mapping[str, Any]) -> None:
        for name in _LIMITS:
            if (fields.get(name) or 0) > self.bounds.prompt_tokens:
                raise RequestError(
                    f"{name} is {fields[name]}, but a request has at most {self.bounds.request_tokens} tokens here, "
                    "one of them at least for the prompt; lower it",
                    param=name, code="context_length_exceeded",
                )  # fmt: skip

    def _decoded(self, given: Mapping[str, Raw], kind: type[RequestFields]) -> dict[str, Any]:
        fields = {}
        for name, cut in given.items():
            raw = bytes(cut)
            if name in kind.unsupported:
                refuse_unsupported(name, raw, kind.unsupported[name])
            else:
                decode = kind.decoders.get(name) or _DECODERS.get(name, any_scalar)
                fields[name] = decode(self.bounds, raw, name)
        return fields


def any_scalar(bounds: Bounds, raw: bytes, place: str) -> Any:
    return scalar(raw, place)


def within(max_bytes: int, max_depth: int = MAX_DEPTH) -> Decode:
    """Return what decodes any JSON within these bounds."""
    return lambda bounds, raw, place: bounded(raw, place, max_bytes=max_bytes, max_depth=max_depth)


_DECODERS: Mapping[str, Decode] = {
    "messages": messages,
    "prompt": prompts,
    "tokens": output_ids,
    "stop": within(STOPS_BYTES),
    "stop_token_ids": within(MAX_ENVELOPE_BYTES),
    "logit_bias": within(MAX_ENVELOPE_BYTES),
    "tools": within(_TOOLS_BYTES, MAX_SCHEMA_DEPTH),
    "tool_choice": within(MAX_ENVELOPE_BYTES),
    "chat_template_kwargs": within(MAX_ENVELOPE_BYTES),
    **dict.fromkeys(STRUCTURE_FIELDS, within(STRUCTURE_BYTES, MAX_SCHEMA_DEPTH)),
}
"""Of fields that are no scalars; a kind of request may have others of its own."""
