"""The object that a response is to its clients, from its beginning to its end."""

from __future__ import annotations

import time
from typing import Any

from longspan.entrypoints.openai.blocks import BlockReader
from longspan.entrypoints.openai.errors import ErrorAnswer
from longspan.entrypoints.openai.tool_use import NamedTool
from longspan.entrypoints.responses.answers import (
    IncompleteDetails,
    InputTokensDetails,
    OutputTokensDetails,
    ResponseError,
    ResponseObject,
    ResponseUsage,
)
from longspan.entrypoints.responses.items import OutputItem
from longspan.entrypoints.responses.request import ResponsesRequest
from longspan.sampling_params import SamplingParams


def begun(
    response_id: str, model: str, body: ResponsesRequest, params: SamplingParams, *, keeps: bool
) -> ResponseObject:
    """Return one that has nothing yet. params: how its tokens are chosen, by the model's defaults, too. keeps: whether
    responses are kept here."""
    choice = body.tool_choice
    return ResponseObject(
        id=response_id,
        created_at=int(time.time()),
        model=model,
        status="queued" if body.background else "in_progress",
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        metadata=body.metadata or {},
        parallel_tool_calls=body.parallel_tool_calls is not False,
        previous_response_id=body.previous_response_id,
        temperature=params.temperature,
        top_p=params.top_p,
        tool_choice={"type": "function", "name": str(choice)} if isinstance(choice, NamedTool) else choice or "auto",
        tools=[_tool(tool.model_dump()) for tool in body.tools or ()],
        text=_text(body),
        reasoning={"effort": None, "summary": None} if body.reasoning is None else body.reasoning.model_dump(),
        background=bool(body.background),
        store=keeps and body.store is not False,
    )


def complete(response: ResponseObject, reader: BlockReader, output: list[OutputItem]) -> None:
    """Complete it, or tell why it is not complete."""
    count = reader.run.usage
    response.output = output
    response.usage = ResponseUsage(
        count.prompt_tokens,
        InputTokensDetails(count.cached_tokens),
        count.completion_tokens,
        OutputTokensDetails(reader.reasoning_tokens),
        count.prompt_tokens + count.completion_tokens,
    )
    if reader.finish_reason == "length":
        response.status, response.incomplete_details = "incomplete", IncompleteDetails("max_output_tokens")
    else:
        response.status, response.completed_at = "completed", int(time.time())


def fail(response: ResponseObject, answer: ErrorAnswer) -> None:
    """End it with an error, by one of the names that OpenAI's clients know."""
    code = "server_error" if answer.status >= 500 else "invalid_prompt"
    code = "rate_limit_exceeded" if answer.status == 429 else code
    response.status, response.error = "failed", ResponseError(code, answer.shown)


def _tool(given: dict[str, Any]) -> dict[str, Any]:
    return {**given, "strict": given["strict"] is not False}


def _text(body: ResponsesRequest) -> dict[str, Any]:
    form = body.text.format if body.text else None
    told = {"type": "text"} if form is None else form.model_dump(by_alias=True, exclude_none=True)
    return {"format": told, "verbosity": "medium"}
