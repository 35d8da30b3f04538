"""From a conversation to its answers: checked, written by the chat template, run."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from secrets import token_hex
from typing import Any

from longspan.engine.protocol import TokenIds
from longspan.entrypoints.openai.chat_task import ChatTask
from longspan.entrypoints.openai.context import Context
from longspan.entrypoints.openai.generation import Job, UsageCount, make_jobs, prepare, run
from longspan.entrypoints.openai.limits import check_choices
from longspan.entrypoints.openai.tool_calls import PieceReader, reader_for
from longspan.entrypoints.openai.tool_use import ToolUse
from longspan.metrics.prometheus import Arrival
from longspan.outputs import RequestOutput


@dataclass(frozen=True, slots=True)
class ChatRun:
    """A conversation that is being answered. run_id: what its engine requests' ids begin with; readers: of each."""

    context: Context
    arrival: Arrival
    run_id: str
    jobs: Sequence[Job]
    usage: UsageCount
    readers: Sequence[PieceReader]

    def outputs(self) -> AsyncGenerator[tuple[Job, RequestOutput], None]:
        """Yield what comes. Closing it aborts all."""
        return run(self.context, self.arrival, self.jobs)


async def encode_conversation(
    context: Context, messages: Sequence[Mapping[str, Any]], num_characters: int, variables: Mapping[str, Any],
    tools: ToolUse,
) -> tuple[TokenIds, str]:  # fmt: skip
    """Return the tokens of messages as the chat template writes them, and the end of their text.

    Raises RequestError, QueueFullError.
    """
    told = {"tools": list(tools.offered)} if tools.offered else {}
    return await context.texts.encode_chat(messages, {**variables, **told}, num_characters)


async def begin_chat(context: Context, task: ChatTask, arrival: Arrival, answer_id: str) -> ChatRun:
    """Check all of it, and make its choices ready to run. answer_id: what clients know the answer by.

    Raises RequestError, QueueFullError.
    """
    check_choices(context.engine, task.choices, "n")
    params, chat_format = task.params, context.engine.tokenizer.chat_format
    if chat_format.keeps_special and chat_format.reads(bool(task.tools.offered)):
        params = replace(params, skip_special_tokens=False)
    prompt, end = await encode_conversation(context, task.messages, task.num_characters, task.variables, task.tools)
    if params.structured_outputs is not None and (thought := chat_format.end_of_thoughts(end)) is not None:
        params = replace(params, structured_outputs=replace(params.structured_outputs, after=thought))
    await prepare(context, params, task.structured_by)
    run_id = f"{answer_id}-{token_hex(4)}"  # a client may use its X-Request-Id twice, the engine may not
    jobs = make_jobs(context, arrival, run_id, [prompt], params, task.choices, task.names)
    usage = UsageCount(context, [prompt], task.choices)
    structured = params.structured_outputs is not None
    readers = [PieceReader(task.tools, reader_for(task.tools, chat_format, end, structured=structured)) for _ in jobs]
    return ChatRun(context, arrival, run_id, jobs, usage, readers)
