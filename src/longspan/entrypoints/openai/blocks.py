"""One answer as a row of blocks: what the model thinks, what it says, and each tool that it calls.

The endpoints whose answers are rows of items are written from it, whole and in streams; a chat's answer is one message.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Literal

from longspan.core.events import FinishReason
from longspan.engine.call_text import Piece
from longspan.entrypoints.openai.chat_run import ChatRun

Kind = Literal["reasoning", "content", "call"]


@dataclass(slots=True, eq=False)
class Block:
    """A part of an answer.

    index: its place. name: of the tool, where it is a call; `text` is its arguments then.
    """

    kind: Kind
    index: int
    name: str = ""
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@dataclass(frozen=True, slots=True)
class Step:
    """What has become of a block: it has begun, has more text, or is whole."""

    what: Literal["begin", "more", "end"]
    block: Block
    text: str = ""


class BlockReader:
    """Reads one conversation's one answer.

    finish_reason, stop_reason: why it ended, once it has; a stop string or a token's id. reasoning_tokens: of its
    output, those up to where it has thought last. never_empty: an answer without anything has a block without text.
    """

    def __init__(self, run: ChatRun, *, never_empty: bool = False) -> None:
        self.run = run
        self._never_empty = never_empty
        self.blocks: list[Block] = []
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None
        self.reasoning_tokens = 0
        self._open: Block | None = None

    async def steps(self) -> AsyncGenerator[Step, None]:
        """Yield what becomes of its blocks. Closing it aborts the request.

        Raises what the engine does.
        """
        async with aclosing(self.run.outputs()) as outputs:
            async for job, output in outputs:
                self.run.usage.add(job, output)
                pieces = self.run.readers[job.index].take(output.text, output.finished)
                if any(piece.kind == "reasoning" for piece in pieces):
                    self.reasoning_tokens = self.run.usage.completion_tokens
                for piece in pieces:
                    for step in self._take(piece):
                        yield step
                self.finish_reason, self.stop_reason = output.finish_reason, output.stop_reason
        if not self.blocks and self._never_empty:
            for step in self._begin(Block("content", 0)):
                yield step
        for step in self._end():
            yield step

    async def read_all(self) -> None:
        """Read it to its end."""
        async with aclosing(self.steps()) as steps:
            async for _ in steps:
                pass

    def _take(self, piece: Piece) -> list[Step]:
        kind: Kind = "call" if piece.kind == "arguments" else piece.kind
        steps: list[Step] = []
        if self._open is None or self._open.kind != kind or piece.kind == "call":
            block = Block(kind, len(self.blocks), piece.text if piece.kind == "call" else "")
            steps += self._end() + self._begin(block)
        else:
            block = self._open
        if piece.kind != "call" and piece.text:
            block.pieces.append(piece.text)
            steps.append(Step("more", block, piece.text))
        return steps

    def _begin(self, block: Block) -> list[Step]:
        self._open = block
        self.blocks.append(block)
        return [Step("begin", block)]

    def _end(self) -> list[Step]:
        ended, self._open = self._open, None
        return [] if ended is None else [Step("end", ended)]
