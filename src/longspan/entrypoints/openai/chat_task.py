"""A conversation and how it is to be answered: what every endpoint for conversations reads its requests into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from longspan.entrypoints.openai.request_fields import Names
from longspan.entrypoints.openai.structure import named
from longspan.entrypoints.openai.tool_use import ToolUse
from longspan.errors import RequestError
from longspan.sampling_params import SamplingParams
from longspan.structured_outputs import MAX_BYTES, StructuredOutputs

Structure = tuple[str, StructuredOutputs]
"""The field that says what an answer must look like, and what it says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTask:
    """What is to be answered.

    messages: as chat templates read them. num_characters: of all of them. variables: further ones of the template.
    params: how tokens are chosen; `structured_by` is the field that says what the answer must look like, if one does.
    choices: how many answers. names: the client's names of the fields that decide the length.
    """

    messages: Sequence[Mapping[str, Any]]
    num_characters: int
    params: SamplingParams
    structured_by: str | None = None
    tools: ToolUse = field(default_factory=ToolUse)
    variables: Mapping[str, Any] = field(default_factory=dict)
    choices: int = 1
    names: Names


def structure_with_calls(structure: Structure | None, tools: ToolUse) -> Structure | None:
    """Return what an answer must look like that may have to call a tool, too. Raises RequestError."""
    try:
        calls = tools.call_grammar()
    except RequestError as error:
        if error.code == "value_too_large":
            raise RequestError(
                f"tools: the schemas of all that may be called are larger than {MAX_BYTES} bytes, too large for a "
                "tool_choice that demands a call; name one of them, offer fewer, or leave it to the model",
                param="tools", code="value_too_large",
            ) from None  # fmt: skip
        raise named(error, "tools") from None
    if structure is None or calls is None:
        return structure if calls is None else ("tools", calls)
    raise RequestError(f"{structure[0]} and a tool_choice that demands a call do not go together", param=structure[0],
                       code="invalid_value")  # fmt: skip


def both_structures(found: Structure | None, own: Structure) -> Structure:
    """Return what the answer must look like, of which one field may say. Raises RequestError."""
    if found is not None:
        raise RequestError(f"{found[0]} and {own[0]} do not go together", param=found[0], code="invalid_value")
    return own


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
"""How much a model is to think, in OpenAI's words."""


def wants_thoughts(effort: Effort | None) -> bool | None:
    """Return whether a model is to think; None: as its template does. How much, no template knows."""
    return None if effort is None else effort not in ("none", "minimal")


def thinking(wanted: bool | None, thinks: bool, place: str) -> dict[str, Any]:
    """Return the template's variable that lets the model think before it answers, or not; None: as the template does.

    thinks: whether the template knows of it. place: the field that asks for it. Raises RequestError.
    """
    if wanted and not thinks:
        raise RequestError(
            f"{place} is not supported: the chat template of this model does not let it think", param=place,
            code="unsupported_parameter",
        )  # fmt: skip
    return {} if wanted is None or not thinks else {"enable_thinking": wanted}
