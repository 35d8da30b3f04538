"""Calls of earlier answers, as one chat template can write them: templates agree on names, not on what may be there.

Clients send ids of any kind, and arguments as JSON, which are an object by now, as most templates want them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Message = Mapping[str, Any]

_SHORT_ID = re.compile("[a-zA-Z0-9]{9}")
_ADDS_ARGUMENTS = re.compile(r"""\+\s*[\w.'"\[\]]*\barguments\b['"\]]*\s*(?:\+|-?\}\})""")


@dataclass(frozen=True, slots=True)
class CallHistory:
    """What one chat template takes.

    short_ids: only ids of nine letters and digits, as Mistral's do.
    text_arguments: arguments as a text, which it adds to others, as DeepSeek's do.
    """

    short_ids: bool = False
    text_arguments: bool = False

    @classmethod
    def of(cls, chat_template: str) -> CallHistory:
        """Read it from the template's own text."""
        return cls("[TOOL_CALLS]" in chat_template, bool(_ADDS_ARGUMENTS.search(chat_template)))

    def fitted(self, messages: Sequence[Message]) -> list[Message]:
        """Return messages that the template can write."""
        return [self._fitted(message) for message in messages]

    def _fitted(self, message: Message) -> Message:
        changed: dict[str, Any] = {}
        if self.short_ids and message.get("tool_call_id"):
            changed["tool_call_id"] = _short(message["tool_call_id"])
        if calls := message.get("tool_calls"):
            changed["tool_calls"] = [self._fitted_call(call) for call in calls]
        return {**message, **changed} if changed else message

    def _fitted_call(self, call: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.short_ids and call.get("id"):
            call = {**call, "id": _short(call["id"])}
        function = call.get("function")
        if self.text_arguments and isinstance(function, Mapping) and isinstance(function.get("arguments"), Mapping):
            text = json.dumps(function["arguments"], ensure_ascii=False)
            call = {**call, "function": {**function, "arguments": text}}
        return call


def _short(call_id: str) -> str:
    """The same for a call and for its result, and another for every other call."""
    return call_id if _SHORT_ID.fullmatch(call_id) else hashlib.blake2s(call_id.encode()).hexdigest()[:9]
