"""How a model writes calls of tools, and what it thinks before it answers; and how tools are told to one without a way.

A tokenizer's own response template (transformers) says how its answers are to be read. Where it has none, the chat
template tells: of how earlier answers are written there it is plain how the next one will be.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from longspan.engine.call_history import CallHistory, Message

Template = dict[str, Any]

CONTENT, CALLS, REASONING = "content", "tool_calls", "reasoning_content"

_CALLS_BEGIN, _CALLS_END, _CALL_BEGIN, _CALL_END, _SEP = (  # DeepSeek's marks, with a bar and a line of their own
    f"<\uff5c{name}\uff5c>".replace("_", "\u2581")
    for name in ("tool_calls_begin", "tool_calls_end", "tool_call_begin", "tool_call_end", "tool_sep")
)
_JSON = {"content": "json", "content_args": {"allow_non_json": True}, "repeats": True}
_NAMED = {"transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}}
_FIELDS: dict[str, Template] = {
    # Qwen2.5, Qwen3, Hermes, SmolLM3: a JSON object between tags. Also what a model without a format is told.
    "hermes": {"open": "<tool_call>", "close": "</tool_call>", **_JSON},
    # Mistral: a list of them behind a word, to the end.
    "mistral": {"open": "[TOOL_CALLS]", **_JSON},
    # Llama 3: nothing but an object, or some with semicolons between them, perhaps behind a word.
    "llama": {
        "open_pattern": r'\A\s*(?:<\|python_tag\|>\s*)?(?=\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:)', **_JSON,
    },
    # Mistral since its eleventh tokenizer: the word, a name, perhaps an id, and the arguments; so for each call.
    "mistral_args": {
        "open_pattern": r"\[TOOL_CALLS\]\s*(?P<name>[^\[\]{}\s]+)\s*(?:\[CALL_ID\][^\[\]]*)?\[ARGS\]",
        "close_pattern": r"(?=\[TOOL_CALLS\])",
        **_JSON, **_NAMED,
    },
    # DeepSeek V3 and R1, with a block of code; since V3.1 without one. What ends one call is told from what ends all.
    "deepseek": {
        "open_pattern": rf"(?:{_CALLS_BEGIN}\s*)?{_CALL_BEGIN}(?:function{_SEP})?(?P<name>(?!function{_SEP})[^<\n]+)"
        rf"(?:{_SEP}|\n```json\n)",
        "close_pattern": rf"(?:\s*```)?\s*{_CALL_END}(?:\s*{_CALLS_END}|(?=\s*{_CALL_BEGIN})|(?=\s*[^\s<])|\s*\Z)",
        **_JSON, **_NAMED,
    },
    # Qwen3-Coder: a tag for each argument.
    "qwen3_coder": {
        "open_pattern": r"<tool_call>\s*<function=(?P<name>[^>\n]+)>",
        "close_pattern": r"</function>\s*</tool_call>",
        "content": "xml-inline",
        "content_args": {"tag_pattern": r"<parameter=(?P<key>[^>\n]+)>\n?(?P<value>.*?)\n?</parameter>"},
        "repeats": True,
        **_NAMED,
    },
}
_SIGNS = ((_CALL_BEGIN, "deepseek"), ("[ARGS]", "mistral_args"), ("<function=", "qwen3_coder"),
          ("<tool_call>", "hermes"), ("[TOOL_CALLS]", "mistral"), ("<|python_tag|>", "llama"),
          ('"parameters": ', "llama"))  # fmt: skip

_TOLD = """\
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""
"""What models of Hermes' and Qwen's families are told."""


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """One model's.

    family: by which the calls are read; None where the tokenizer's own template says how.
    template: of answers; its regions have the names above.
    tells_tools: whether the chat template has a place for tools. Where it has not, they are told in a system message.
    writes_calls: whether it has a place for calls of earlier answers, and their results. Where not, they are text.
    thinks: whether an answer may begin with what the model thinks.
    keeps_special: whether what marks the parts of an answer are special tokens, which must be part of its text then.
    history: what the chat template takes of earlier answers' calls.
    """

    template: Template
    family: str | None = "hermes"
    tells_tools: bool = False
    writes_calls: bool = False
    thinks: bool = False
    keeps_special: bool = False
    history: CallHistory = field(default_factory=CallHistory)

    @classmethod
    def of(cls, chat_template: Any, response_template: Any = None, special: Iterable[str] = ()) -> ChatFormat:
        """Read it from what a tokenizer has; either may be None, and the first several templates by name.

        special: texts of its special tokens.
        """
        text = "\n".join(chat_template.values()) if isinstance(chat_template, dict) else chat_template or ""
        tells, writes, history = "tools" in text, "tool_calls" in text, CallHistory.of(text)
        if isinstance(response_template, dict) and response_template.get("fields"):
            template = _with_our_names(response_template)
            thinks = REASONING in template["fields"]
            return cls(template, None, tells, writes, thinks, _has_any(special, template), history)
        family = next((name for sign, name in _SIGNS if tells and sign in text), "hermes")
        fields: Template = {CONTENT: {}, CALLS: _FIELDS[family]}
        if thinks := "</think>" in text:
            fields[REASONING] = {"open": "<think>", "close": "</think>"}
        template = {"start_anchor_pattern": r"\A", "fields": fields}
        return cls(template, family, tells, writes, thinks, _has_any(special, template), history)

    def told_in_log(self, has_chat_template: bool) -> str:
        """Return one line about how tools are told to the model, and its calls read."""
        if not has_chat_template:
            return "the model has no chat template: conversations are refused, and tools with them"
        if not self.tells_tools:
            return "the chat template has no place for tools: they are told in a system message (docs/api.md)"
        by = "its tokenizer's response template" if self.family is None else f"the format of {self.family}"
        return f"tools are told by the chat template, and calls read by {by}"

    def reads(self, calls: bool) -> Template | None:
        """Return the template to read an answer by; None where all of it is text. calls: whether there may be some."""
        if not calls and not self.thinks:
            return None
        fields = {name: field for name, field in self.template["fields"].items() if calls or name != CALLS}
        return {**self.template, "fields": fields}

    def end_of_thoughts(self, prompt: str) -> str | None:
        """Return the text that ends what the model thinks, where a prompt has it begin with that; else None."""
        field = self.template["fields"].get(REASONING, {})
        begin, end = field.get("open"), field.get("close")
        if not (isinstance(begin, str) and isinstance(end, str)):
            return None
        return end if prompt.rstrip().endswith(begin.rstrip()) else None

    def prefix(self, prompt: str) -> str:
        """Return the end of a prompt that is the beginning of its answer."""
        if self.family is None:
            return prompt
        return "" if self.end_of_thoughts(prompt) is None else "<think>"

    def told(self, messages: Sequence[Message], tools: Sequence[Message] | None) -> list[Message]:
        """Return messages that a template without a place for tools can write: they are a part of the first one, calls
        are text of the assistant's, and results text of the user's."""
        found: list[Message] = [*messages] if self.writes_calls else [_as_text(message) for message in messages]
        if not tools:
            return found
        said = _TOLD.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
        if found and found[0]["role"] == "system":
            return [{**found[0], "content": f"{found[0]['content']}\n\n{said}"}, *found[1:]]
        return [{"role": "system", "content": said}, *found]


def _has_any(special: Iterable[str], template: Template) -> bool:
    marks = [
        str(field[name]) for field in template["fields"].values()
        for name in ("open", "close", "open_pattern", "close_pattern") if name in field
    ]  # fmt: skip
    return any(token in mark or re.escape(token) in mark for token in special for mark in marks)


def _with_our_names(template: Template) -> Template:
    """And what is no JSON is text, not an error."""
    names = {"thinking": REASONING, "reasoning": REASONING}
    fields = {names.get(name, name): dict(field) for name, field in template["fields"].items()}
    for one in fields.values():
        if one.get("content") == "json":
            one["content_args"] = {**one.get("content_args", {}), "allow_non_json": True}
    return {**template, "fields": fields}


def _as_text(message: Message) -> Message:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    if not message.get("tool_calls"):
        return message
    calls = [
        "<tool_call>\n" + json.dumps(dict(call["function"]), ensure_ascii=False) + "\n</tool_call>"
        for call in message["tool_calls"]
    ]
    text = message.get("content") or ""
    return {"role": message["role"], "content": "\n".join([*([text] if text else []), *calls])}
