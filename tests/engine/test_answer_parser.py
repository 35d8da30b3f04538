"""Answers are read alike, however their stream is cut: as seven families of models write them."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.engine.answer_parser import AnswerReader, CallsReader, NamedCallReader, PlainReader, TemplateReader
from longspan.engine.call_text import CallText, Piece, joined
from longspan.engine.chat_format import ChatFormat
from longspan.engine.thoughtful_reader import ThoughtfulReader

WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}}}  # fmt: skip


@dataclass(frozen=True)
class Recorded:
    """What a model wrote, and what it means. template: a piece of its family's chat template."""

    template: str
    text: str
    content: str = ""
    reasoning: str = ""
    calls: list[tuple[str, Any]] = field(default_factory=list)


def marked(text: str) -> str:
    """With DeepSeek's own bars and lines."""
    return re.sub(r"<\|(calls?|sep)(_?)", lambda m: f"<\uff5ctool\u2581{m[1]}{m[2] and chr(0x2581)}", text).replace(
        "|>", "\uff5c>"
    )


HERMES = "{%- if tools %}<tool_call>\n{%- endif %}"
THINKING = HERMES + "{{ content.split('</think>')[-1] }}"
MISTRAL = "{%- if tools %}[AVAILABLE_TOOLS]{%- endif %}[TOOL_CALLS]"
MISTRAL_ARGS = MISTRAL + "[ARGS]"
DEEPSEEK = "{%- if tools %}" + marked("<|call_begin|>") + "{%- endif %}{{ content.split('</think>')[-1] }}"
LLAMA = '{%- if tools %}<|python_tag|>{"name": ..., "parameters": ...}{%- endif %}'
CODER = "{%- if tools %}<tool_call>\n<function=example>{%- endif %}"
RECORDED = [
    Recorded(HERMES, "The capital is Paris.", "The capital is Paris."),
    Recorded(HERMES, " two  spaces, and a line\n", " two  spaces, and a line\n"),
    Recorded(HERMES, '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}\n</tool_call>',
             calls=[("get_weather", {"city": "Paris", "days": 2})]),
    Recorded(HERMES, 'Let me look.\n\n<tool_call>\n{"name": "get_weather", "arguments": '
             '{"city": "São Paulo \\"SP\\" }]"}}\n</tool_call>\n<tool_call>\n'
             '{"name": "now", "arguments": {}}\n</tool_call>', "Let me look.",
             calls=[("get_weather", {"city": 'São Paulo "SP" }]'}), ("now", {})]),
    Recorded(HERMES, '<tool_call>{"arguments": {"a": [1, {"b": null}], "c": -1.5e3}, "name": "f"}</tool_call> Done.',
             "Done.", calls=[("f", {"a": [1, {"b": None}], "c": -1500.0})]),
    Recorded(HERMES, '<tool_call>{"name": "f", "arguments": "{\\"a\\": \\"b\\"}"}</tool_call>',
             calls=[("f", {"a": "b"})]),
    Recorded(HERMES, "1 <tool_cal 2 < 3 </tool_call> <tool", "1 <tool_cal 2 < 3 </tool_call> <tool"),
    Recorded(HERMES, '<tool_call>\n{"name": get\n</tool_call>', '<tool_call>\n{"name": get\n</tool_call>'),
    Recorded(THINKING, "<think>\nThey want 1 < 2.\n</think>\n\nYes.", "Yes.", "They want 1 < 2."),
    Recorded(THINKING, '<think>\n\n</think>\n\n<tool_call>\n{"name": "now", "arguments": {"tz": "UTC"}}\n</tool_call>',
             calls=[("now", {"tz": "UTC"})]),
    Recorded(MISTRAL, '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}}, '
             '{"name": "now", "arguments": {}}]',
             calls=[("get_weather", {"city": "Paris"}), ("now", {})]),
    Recorded(MISTRAL, '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}, "id": "a1B2c3D4e"}]',
             calls=[("get_weather", {"city": "Paris"})]),
    Recorded(MISTRAL, "It is [sunny] in Paris.", "It is [sunny] in Paris."),
    Recorded(LLAMA, '{"name": "get_weather", "parameters": {"city": "Paris"}}',
             calls=[("get_weather", {"city": "Paris"})]),
    Recorded(LLAMA, '<|python_tag|>{"name": "now", "parameters": {}}', calls=[("now", {})]),
    Recorded(LLAMA, '{"answer": 42}', '{"answer": 42}'),
    Recorded(LLAMA, '{"type": "function", "name": "get_weather", "parameters": {"city": "Paris; Rome", "days": "2"}}',
             calls=[("get_weather", {"city": "Paris; Rome", "days": "2"})]),
    Recorded(LLAMA, '<|python_tag|>{"name": "get_weather", "parameters": {"city": "}{"}}; {"name": "now", '
             '"parameters": {}}', calls=[("get_weather", {"city": "}{"}), ("now", {})]),
    Recorded(LLAMA, 'I would call {"name": "now", "parameters": {}}',
             'I would call {"name": "now", "parameters": {}}'),
    Recorded(CODER, "I look.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n"
             "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>", "I look.",
             calls=[("get_weather", {"city": "Paris", "days": 3})]),
    Recorded(CODER, "<tool_call>\n<function=now>\n</function>\n</tool_call>\n<tool_call>\n<function=f>\n<parameter=x>"
             "\na\nb\n</parameter>\n</function>\n</tool_call>", calls=[("now", {}), ("f", {"x": "a\nb"})]),
    Recorded(MISTRAL_ARGS, 'I look.[TOOL_CALLS]get_weather[ARGS]{"city": "[Paris]"}[TOOL_CALLS]now[ARGS]{}', "I look.",
             calls=[("get_weather", {"city": "[Paris]"}), ("now", {})]),
    Recorded(MISTRAL_ARGS, '[TOOL_CALLS]get_weather[CALL_ID]a1B2c3D4e[ARGS]{"city": "Paris", "days": [1, [2]]}',
             calls=[("get_weather", {"city": "Paris", "days": [1, [2]]})]),
    Recorded(DEEPSEEK, "<think>\nhm\n</think>\n\n" + marked(
                 '<|calls_begin|><|call_begin|>function<|sep|>get_weather\n```json\n{"city": "Paris"}\n```'
                 "<|call_end|>\n<|call_begin|>function<|sep|>now\n```json\n{}\n```<|call_end|><|calls_end|>"),
             reasoning="hm", calls=[("get_weather", {"city": "Paris"}), ("now", {})]),
    Recorded(DEEPSEEK, marked('I look.<|calls_begin|><|call_begin|>get_weather<|sep|>{"city": "<Paris>", "days": 2}'
                              '<|call_end|><|call_begin|>f<|sep|>{"name": "a", "parameters": {}}<|call_end|>'
                              "<|calls_end|>"), "I look.",
             calls=[("get_weather", {"city": "<Paris>", "days": 2}), ("f", {"name": "a", "parameters": {}})]),
    Recorded(DEEPSEEK, marked("<|call_begin|>now<|sep|>{}<|call_end|> Done."), "Done.", calls=[("now", {})]),
    Recorded(DEEPSEEK, marked("1 <|calls 2 <|call_begin|> ```json"), marked("1 <|calls 2 <|call_begin|> ```json")),
]  # fmt: skip


def read(reader: AnswerReader, pieces: list[str]) -> list[Piece]:
    found = [piece for text in pieces for piece in reader.feed(text)]
    return joined(found + reader.finish())


def reader_of(recorded: Recorded) -> TemplateReader:
    chat_format = ChatFormat.of(recorded.template)
    template = chat_format.reads(True)
    assert template is not None
    return TemplateReader(template, chat_format.prefix("<|im_start|>assistant\n"), [WEATHER])


def meaning(pieces: list[Piece]) -> tuple[str, str, list[tuple[str, Any]]]:
    text = {"content": "", "reasoning": ""}
    calls: list[list[str]] = []
    for piece in pieces:
        if piece.kind == "call":
            calls.append([piece.text, ""])
        elif piece.kind == "arguments":
            calls[-1][1] += piece.text
        else:
            text[piece.kind] += piece.text
    return text["content"], text["reasoning"], [(name, json.loads(arguments)) for name, arguments in calls]


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded.text[:30])
def test_what_was_recorded(recorded: Recorded) -> None:
    assert meaning(read(reader_of(recorded), [recorded.text])) == (
        recorded.content, recorded.reasoning, recorded.calls
    )  # fmt: skip


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded.text[:30])
def test_every_cut_in_two_and_every_length_of_pieces(recorded: Recorded) -> None:
    text = recorded.text
    whole = read(reader_of(recorded), [text])
    for cut in range(len(text) + 1):
        assert read(reader_of(recorded), [text[:cut], text[cut:]]) == whole
    for size in range(1, 20):
        assert read(reader_of(recorded), [text[at : at + size] for at in range(0, len(text), size)]) == whole


@given(data=st.data(), recorded=st.sampled_from(RECORDED))
def test_any_cuts(data: st.DataObject, recorded: Recorded) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(recorded.text))))
    edges = sorted([0, *cuts, len(recorded.text)])
    pieces = [recorded.text[begin:end] for begin, end in pairwise(edges)]
    assert read(reader_of(recorded), pieces) == read(reader_of(recorded), [recorded.text])


WORDS = ["<tool_call>", "</tool_call>", "<think>", "</think>", '{"name": "f", ', '"arguments": ', "{}}", '"', "\\",
         " ", "\n", "a", "{", "}", "[", "]", ",", "<", ":", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_tag|>",
         "<function=f>", "</function>", "<parameter=a>", "</parameter>", "function", "\n```json\n", "```",
         *map(marked, ("<|calls_begin|>", "<|calls_end|>", "<|call_begin|>", "<|call_end|>", "<|sep|>"))]  # fmt: skip
FAMILIES = [THINKING, MISTRAL, MISTRAL_ARGS, LLAMA, CODER, DEEPSEEK]


@given(family=st.sampled_from(FAMILIES), text=st.lists(st.sampled_from(WORDS), max_size=12), size=st.integers(1, 9))
def test_nonsense_is_read_alike_too(family: str, text: list[str], size: int) -> None:
    recorded = Recorded(family, "".join(text))
    pieces = [recorded.text[at : at + size] for at in range(0, len(recorded.text), size)]
    assert read(reader_of(recorded), pieces) == read(reader_of(recorded), [recorded.text])


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=8,
)  # fmt: skip
calls = st.lists(st.tuples(st.text(min_size=1, max_size=5), st.dictionaries(st.text(max_size=4), values, max_size=3)))


@given(calls, st.booleans(), st.sampled_from([None, 2]), st.booleans(), st.integers(1, 30))
def test_calls_in_json(calls: list, as_list: bool, indent: int | None, first: bool, size: int) -> None:
    """Whatever names and arguments are, in which order, and however it is written."""
    calls = calls if as_list else calls[:1]
    written = [
        {"arguments": arguments, "name": name} if first else {"name": name, "id": [1], "arguments": arguments}
        for name, arguments in calls
    ]
    text = json.dumps(written if as_list else written[0] if written else {}, indent=indent)
    reader = CallText()
    pieces = [piece for at in range(0, len(text), size) for piece in reader.feed(text[at : at + size])]
    assert meaning(pieces)[2] == calls


def test_arguments_come_as_they_are_written() -> None:
    reader = reader_of(RECORDED[2])
    feeds = [reader.feed(text) for text in ('<tool_call>{"name": "f", ', '"arguments": {"a', '": 1', "}}</tool_call>")]
    assert [[(piece.kind, piece.text) for piece in pieces] for pieces in feeds] == [
        [("call", "f")], [("arguments", '{"a')], [("arguments", '": 1')], [("arguments", "}")]
    ]  # fmt: skip


def test_calls_that_are_demanded() -> None:
    assert meaning(read(NamedCallReader("f"), ["", '{"a"', ": 1}"]))[2] == [("f", {"a": 1})]
    two = ['[{"name": "f", "arguments"', ': {}}, {"name": "g", "arguments": {"b": 2}}]']
    assert meaning(read(CallsReader(), two))[2] == [("f", {}), ("g", {"b": 2})]


def test_a_prompt_that_begins_to_think() -> None:
    chat_format = ChatFormat.of(THINKING)
    template = chat_format.reads(False)
    assert template is not None
    reader = TemplateReader(template, chat_format.prefix("<|im_start|>assistant\n<think>\n"))
    assert meaning(read(reader, ["so it is\n</thi", "nk>\n\nYes <tool_call>"])) == ("Yes <tool_call>", "so it is", [])


@pytest.mark.parametrize(
    ("answer", "text", "found"),
    [
        (PlainReader(), 'hm <b\n\n</think>\n\n{"a": "<think>b</think> <tool_call>"}',
         ('{"a": "<think>b</think> <tool_call>"}', "hm <b", [])),
        (PlainReader(), " \n</think>yes \n", ("yes \n", "", [])),
        (PlainReader(), "cut off </thin", ("", "cut off </thin", [])),
        (NamedCallReader("f"), 'so\n</think>\n{"a": 1}', ("", "so", [("f", {"a": 1})])),
        (NamedCallReader("f"), "so\n", ("", "so", [])),
        (CallsReader(), '</think>[{"name": "f", "arguments": {"a": "</think>"}}]',
         ("", "", [("f", {"a": "</think>"})])),
    ],
)  # fmt: skip
def test_thoughts_before_what_a_grammar_has_made(answer: AnswerReader, text: str, found: object) -> None:
    for size in range(1, len(text) + 1):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        assert meaning(read(ThoughtfulReader("</think>", deepcopy(answer)), pieces)) == found


def test_a_response_template_of_the_tokenizers_own() -> None:
    own = {
        "start_anchor": "<|assistant|>",
        "fields": {
            "thinking": {"open": "<thought>", "close": "</thought>"},
            "tool_calls": {"open": "<call>", "close": "</call>", "content": "json", "repeats": True},
            "content": {},
        },
    }
    chat_format = ChatFormat.of("{{ tools }}", own, special=["<call>"])
    assert (chat_format.family, chat_format.thinks, chat_format.keeps_special) == (None, True, True)
    template = chat_format.reads(True)
    assert template is not None
    reader = TemplateReader(template, chat_format.prefix("<|user|>hi<|assistant|><thought>"))
    text = 'hm</thought>Fine.<call>{"name": "f", "arguments": {"a": 1}}</call>'
    assert meaning(read(reader, list(text))) == ("Fine.", "hm", [("f", {"a": 1})])
    broken = TemplateReader(template, "")
    assert meaning(read(broken, list("a<call>{nothing</call> more"))) == ("a<call>{nothing</call> more", "", [])


def test_tools_are_told_where_the_template_has_no_place_for_them() -> None:
    chat_format = ChatFormat.of("{% for message in messages %}{{ message.content }}{% endfor %}")
    call = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}
    messages = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "sunny", "tool_call_id": "1"},
    ]  # fmt: skip
    told = chat_format.told(messages, [WEATHER])
    assert [message["role"] for message in told] == ["system", "user", "assistant", "user"]
    assert told[0]["content"].startswith("Be brief.\n\n# Tools") and json.dumps(WEATHER) in told[0]["content"]
    assert told[2]["content"] == '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    assert told[3]["content"] == "<tool_response>\nsunny\n</tool_response>"
    assert meaning(read(reader_of(Recorded("", told[2]["content"])), [told[2]["content"]]))[2] == [
        ("get_weather", {"city": "Paris"})
    ]
