"""A response as it comes: its items, and the events that tell of them, each with its number."""

from __future__ import annotations

from collections.abc import Iterator
from secrets import token_hex

from longspan.entrypoints.openai import sse
from longspan.entrypoints.openai.blocks import Block, BlockReader, Step
from longspan.entrypoints.responses import answers
from longspan.entrypoints.responses.items import (
    FunctionCallItem,
    MessageItem,
    OutputItem,
    OutputText,
    ReasoningItem,
    ReasoningText,
)


class Items:
    """The output items of one response, by its blocks."""

    def __init__(self, reader: BlockReader) -> None:
        self._reader = reader
        self.all: list[OutputItem] = []

    def begin(self, block: Block) -> OutputItem:
        """Return the item of a block that has begun."""
        item: OutputItem
        if block.kind == "content":
            item = MessageItem(f"msg_{token_hex(12)}", "assistant", [], "in_progress")
        elif block.kind == "reasoning":
            item = ReasoningItem(f"rs_{token_hex(12)}", [], [], "in_progress")
        else:
            item = FunctionCallItem(f"fc_{token_hex(12)}", f"call_{token_hex(12)}", block.name, "", "in_progress")
        self.all.append(item)
        return item

    def end(self, block: Block) -> OutputItem:
        """Return the item of a block that is whole, or was cut off with the answer."""
        item = self.all[block.index]
        is_last = block is self._reader.blocks[-1]
        item.status = "incomplete" if is_last and self._reader.finish_reason == "length" else "completed"
        if isinstance(item, MessageItem):
            item.content = [OutputText(block.text)]
        elif isinstance(item, ReasoningItem):
            item.content = [ReasoningText(block.text)]
        else:
            item.arguments = block.text
        return item

    def take(self, step: Step) -> OutputItem:
        """Return the item that a step is about, as it is then."""
        if step.what == "begin":
            return self.begin(step.block)
        return self.end(step.block) if step.what == "end" else self.all[step.block.index]


class EventWriter:
    """Writes the events of one response's stream. `written` is how many there were."""

    def __init__(self, items: Items) -> None:
        self._items = items
        self.written = 0

    def write(self, event: answers.Event) -> bytes:
        """Return one, with its number."""
        event.sequence_number = self.written
        self.written += 1
        return sse.tagged_event(event)

    def of_step(self, step: Step) -> bytes:
        """Return those that tell of a step."""
        item = self._items.take(step)
        index = step.block.index
        events = {"begin": _begun, "more": _more, "end": _ended}[step.what](item, index, step)
        return b"".join(map(self.write, events))


def _begun(item: OutputItem, index: int, step: Step) -> Iterator[answers.Event]:
    yield answers.ItemAdded(output_index=index, item=item)
    if not isinstance(item, FunctionCallItem):
        part = OutputText("") if isinstance(item, MessageItem) else ReasoningText("")
        yield answers.PartAdded(output_index=index, item_id=item.id, part=part)


def _more(item: OutputItem, index: int, step: Step) -> Iterator[answers.Event]:
    if isinstance(item, FunctionCallItem):
        yield answers.ArgumentsDelta(output_index=index, item_id=item.id, delta=step.text)
    elif isinstance(item, MessageItem):
        yield answers.TextDelta(output_index=index, item_id=item.id, delta=step.text)
    else:
        yield answers.ReasoningDelta(output_index=index, item_id=item.id, delta=step.text)


def _ended(item: OutputItem, index: int, step: Step) -> Iterator[answers.Event]:
    text = step.block.text
    if isinstance(item, FunctionCallItem):
        yield answers.ArgumentsDone(output_index=index, item_id=item.id, name=item.name, arguments=text)
    elif isinstance(item, MessageItem):
        yield answers.TextDone(output_index=index, item_id=item.id, text=text)
        yield answers.PartDone(output_index=index, item_id=item.id, part=OutputText(text))
    else:
        yield answers.ReasoningDone(output_index=index, item_id=item.id, text=text)
        yield answers.PartDone(output_index=index, item_id=item.id, part=ReasoningText(text))
    yield answers.ItemDone(output_index=index, item=item)
