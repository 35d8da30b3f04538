"""What all requests with a body share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from longspan.entrypoints.openai.bounds import MAX_NAME_CHARS, Bounds
from longspan.entrypoints.openai.unsupported import Harmless

Decode = Callable[[Bounds, bytes, str], Any]
"""Turns a field's JSON, at its place in the body, into its value. Raises RequestError."""


@dataclass(frozen=True, slots=True)
class Names:
    """The client's names of the fields that decide a request's length."""

    prompt: str
    max_tokens: str = "max_tokens"


class RequestFields(BaseModel):
    """Fields of a body. unsupported: those that are refused unless they ask for nothing. decoders: of fields that other
    kinds of requests do not have, or read otherwise."""

    model_config = ConfigDict(strict=True, protected_namespaces=(), arbitrary_types_allowed=True)
    unsupported: ClassVar[Harmless] = {}
    decoders: ClassVar[Mapping[str, Decode]] = {}

    model: Annotated[str, Field(max_length=MAX_NAME_CHARS)] | None = None

    def check(self) -> None:
        """Raises RequestError for a field that does not go with another."""

    @classmethod
    def describe(cls, properties: dict[str, Any], bounds: Bounds) -> None:
        """Say in its JSON schema's properties what its decoders take."""
