"""Hostile requests, each made from a seed and a number: the same two give the same bytes.

Where a request may be accepted, its prompts have at most 64 tokens and its answer a few, so that what a run costs is
what refusing costs. A prompt is either that short or longer than any context.
"""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable, Sequence

from benchmarks.robustness import hostile_values as values
from benchmarks.robustness.attack import Attack, Due, Finish, Leave, ReadSome, Send, Step, Wait
from benchmarks.robustness.hostile_structures import STRUCTURES

Fields = list[tuple[bytes, bytes]]

COMPLETIONS, CHAT, RESPONSES, MESSAGES = "/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"
ENDPOINTS = (COMPLETIONS, CHAT, RESPONSES, MESSAGES)
SHARED_FIELDS = (
    "model", "n", "temperature", "top_p", "top_k", "min_p", "seed", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "stop", "stop_token_ids", "include_stop_str_in_output", "ignore_eos", "min_tokens",
    "ttft_slo_ms", "tpot_slo_ms", "priority", "if_late", "stream", "stream_options", "max_tokens", "logprobs",
    "logit_bias", "user", "metadata", "response_format", "guided_json", "guided_regex", "guided_choice",
    "guided_grammar", "bad_words", "allowed_token_ids",
    "prompt_logprobs", "truncate_prompt_tokens",
    "use_beam_search", "length_penalty", "skip_special_tokens", "structured_outputs", "service_tier", "extra_body",
    "__class__", "", "model_extra", "request_id",
)  # fmt: skip
COMPLETION_FIELDS = (*SHARED_FIELDS, *["prompt"] * 8, "add_special_tokens", "best_of", "echo", "suffix", "messages")
CHAT_FIELDS = (
    *SHARED_FIELDS, *["messages"] * 8, "top_logprobs", "max_completion_tokens", "tools", "tool_choice", "functions",
    "function_call", "parallel_tool_calls", "chat_template", "chat_template_kwargs", "continue_final_message",
    "add_generation_prompt", "reasoning_effort", "modalities", "audio", "prediction", "store", "verbosity", "prompt",
)  # fmt: skip
RESPONSES_FIELDS = (
    *SHARED_FIELDS, *["input"] * 8, "instructions", "previous_response_id", "max_output_tokens", "tools", "tool_choice",
    "parallel_tool_calls", "text", "reasoning", "include", "metadata", "store", "background", "truncation", "prompt",
    "conversation", "max_tool_calls", "top_logprobs", "chat_template_kwargs", "messages",
)  # fmt: skip
MESSAGES_FIELDS = (
    *SHARED_FIELDS, *["messages"] * 8, "system", "stop_sequences", "tools", "tool_choice", "thinking", "output_config",
    "mcp_servers", "container", "context_management", "chat_template_kwargs", "cache_control", "input",
)  # fmt: skip
FIELDS = {COMPLETIONS: COMPLETION_FIELDS, CHAT: CHAT_FIELDS, RESPONSES: RESPONSES_FIELDS, MESSAGES: MESSAGES_FIELDS}
# Values that only one field has a weakness for.
OF_FIELD: dict[str, tuple[bytes, ...]] = {
    **STRUCTURES,
    "prompt": (b'""', b'["a","b","c"]', b"[1,2,3]", b"[[1,2],[3]]", b"[" + b"0," * 20_000 + b"0]", b'"\\ud83d"',
               b"[0.0]",
               b'[{"prompt_token_ids":[1]}]', b"[[-9223372036854775809]]", b"[0,49151]", b'["a",""]', b"[null,null]"),
    "stop": (b'""', b'["a","a"]', b'"\\ud800"', b'["\\udfff","x"]', b'"\\u0000"', b"[" + b'"x",' * 127 + b'"y"]',
             b"[" + b'"x",' * 128 + b'"y"]', b'["' + b"a" * 20_000 + b'"]', b'"' + "é".encode() * 5_000 + b'"',
             b"[" + b",".join([b'"' + b"ab" * 150 + b'"'] * 128) + b"]", b'["e","\\ud83d\\ude00"]'),
    "stop_token_ids": (b"[2,2,2]", b"[-1]", b"[49152]", b"[9223372036854775807]", b"[" + b"1," * 50_000 + b"1]",
                       b"[0.5]"),
    "seed": (b"-9223372036854775808", b"9223372036854775807", b"9223372036854775808", b"1.0", b"1e3"),
    "n": (b"0", b"2", b"3", b"129", b"1e30", b"2.0"),
    "temperature": (b"5e-324", b"1e-310", b"2", b"2.0000001", b"1e-45", b"-0.0"),
    "top_p": (b"5e-324", b"1e-45", b"0", b"1.0000001"), "min_p": (b"1", b"1e-320", b"1.0000001"),
    "top_k": (b"-1", b"0", b"-2", b"2147483647", b"2147483648", b"1.0"),
    "repetition_penalty": (b"1e-320", b"10", b"5e-324", b"10.1"),
    "ttft_slo_ms": (b"1e-320", b"1e308", b"5e-324", b"1.7976931348623157e308", b"0.001"),
    "tpot_slo_ms": (b"1e-320", b"1e308", b"5e-324", b"1.7976931348623157e308", b"0.001"),
    "priority": (b"-2147483647", b"2147483647", b"-2147483648", b"2147483648", b"1.5"),
    "if_late": (b'"refuse"', b'"serve"', b'"wait"', b'"\\ud800"', b'["serve"]', b"0"),
    "max_tokens": (b"0", b"1", b"3", b"1.0", b"1000000"), "max_completion_tokens": (b"0", b"1", b"3", b"1000000"),
    "logprobs": (b"0", b"5", b"20", b"21", b"true"), "top_logprobs": (b"0", b"20", b"21"),
    "stream_options": (b'{"include_usage":true,"continuous_usage_stats":true}', b'{"include_usage":1}', b'{"x":1}'),
    "model": (b'""', b'"nobody"', b'"smollm2-135m\\u0000"', b'"../smollm2-135m"', b'"\\ud800"',
              b'"' + b"m" * 100_000 + b'"'),
    "tools": (b'[{"type":"function","function":{"name":"f","parameters":{}}}]', b'["\\ud800"]', b"[null]"),
    "tool_choice": (b'"none"', b'"required"', b'{"type":"function","function":{"name":"\\ud800"}}'),
    "response_format": (b'{"type":"json_schema","json_schema":{"schema":{"$ref":"#"}}}', b'{"type":"text","x":1}'),
    "chat_template_kwargs": (
        b'{"messages":[]}', b'{"add_generation_prompt":false}', b'{"tokenize":true}', b'{"bos_token":"\\ud800"}',
        b'{"conversation":1}', b'{"self":1}', b'{"raise_exception":null}', b'{"enable_thinking":"\\ud800"}',
        b'{"loop":1}',
        b'{"eos_token":["' + b"x" * 50_000 + b'"]}', b'{"tools":[1]}', b'{"range":1,"x":{"y":[[[[1]]]]}}', b'{"":1}',
        b'{"strftime_now":1}', b'{"chat_template":"{{ 1/0 }}"}', b'{"documents":[{"a":1}]}', b'{"1":2,"a b":3}',
        b'{"add_generation_prompt":' + b"9" * 400 + b"}", b'{"continue_final_message":true}',
    ),
    "input": (b'""', b"[]", b'"\\ud800"', b'[{"role":"user","content":"x"}]', b'[{"type":"item_reference","id":"x"}]',
              b'[{"type":"function_call","call_id":"a","name":"f","arguments":"{"}]', b'[{"type":"reasoning"}]',
              b'[{"type":"function_call_output","call_id":"a","output":[{"type":"input_text","text":"x"}]}]'),
    "instructions": (b'""', b'"\\ud800"', b'[{"type":"text","text":"x"}]', b'"' + b"i" * 100_000 + b'"'),
    "previous_response_id": (b'""', b'"resp_x"', b'"../x"', b'"\\u0000"', b'"' + b"r" * 5_000 + b'"'),
    "text": (b'{"format":{"type":"json_object"}}', b'{"format":{"type":"json_schema","schema":{"$ref":"#"}}}',
             b'{"format":null,"verbosity":"low"}', b'{"format":{"type":"json_schema","schema":{"type":"x"}}}'),
    "reasoning": (b'{"effort":"none"}', b'{"effort":"high"}', b'{"summary":"detailed"}', b'{"effort":"\\ud800"}'),
    "metadata": (b'{"a":"b"}', b'{"a":1}', b'{"\\ud800":"x"}', b'{"a":"' + b"b" * 600 + b'"}'),
    "system": (b'""', b'[{"type":"text","text":"x"}]', b'[{"type":"image"}]', b'"\\ud800"', b"[]"),
    "stop_sequences": (b"[]", b'[""]', b'["\\ud800"]', b"[" + b'"x",' * 128 + b'"y"]', b'["e","\\ud83d\\ude00"]'),
    "thinking": (b'{"type":"disabled"}', b'{"type":"enabled","budget_tokens":1}', b'{"type":"adaptive"}',
                 b'{"type":1}'),
    "output_config": (b'{"format":{"type":"json_schema","schema":{"not":{}}}}', b'{"effort":"low"}', b'{"format":[]}'),
    "logit_bias": (b'{"1":100}', b'{"49152":-100}', b'{"x":1}', b'{"1":1e400}'),
}  # fmt: skip
ROLES = (b'"system"', b'"user"', b'"assistant"', b'"developer"', b'"tool"', b'"function"', b'"\\ud800"', b'"root"')


def attack(seed: int, number: int, model: str) -> Attack:
    """The attack of this number."""
    draw = random.Random(f"{seed}/{number}")
    kinds: tuple[tuple[Callable[[random.Random, str], Attack], int], ...] = (
        (_fields, 60), (_body, 11), (_headers, 11), (_target, 7), (_connection, 11),
    )  # fmt: skip
    (kind,) = draw.choices([kind for kind, _ in kinds], weights=[weight for _, weight in kinds])
    return kind(draw, model)


# -- fields --------------------------------------------------------------------------------------------------------


def _fields(draw: random.Random, model: str) -> Attack:
    """A good request, one to three fields of which have another value; sometimes one comes twice."""
    path = draw.choice(ENDPOINTS)
    fields = good_fields(draw, path, model)
    names = draw.sample(FIELDS[path], draw.choices((1, 2, 3), (6, 3, 1))[0])
    for name in names:
        new = (name.encode(), _hostile(draw, name))
        fields = [field for field in fields if field[0] != new[0] or draw.random() < 0.03]
        fields.insert(draw.randint(0, len(fields)), new)
    if draw.random() < 0.02:
        fields.append((draw.choice(values.STRINGS)[1:-1], values.value(draw)))
    return Attack(f"fields:{path.split('/')[2]}.{'+'.join(sorted(set(names)))}", (Send(post(path, body_of(fields))),))


def good_fields(draw: random.Random, path: str, model: str) -> Fields:
    """Of a request that is accepted: a short prompt, at most four tokens of output."""
    fields: Fields = [(b"max_output_tokens" if path == RESPONSES else b"max_tokens", b"%d" % draw.randint(1, 4))]
    if draw.random() < 0.5:
        fields.append((b"model", b'"%s"' % model.encode()))
    if draw.random() < 0.3:
        fields.append((b"stream", b"true"))
    if draw.random() < 0.3:
        fields.append((b"temperature", b"0"))
    if draw.random() < 0.15 and path in (COMPLETIONS, CHAT):
        fields += [(b"logprobs", b"3")] if path == COMPLETIONS else [(b"logprobs", b"true"), (b"top_logprobs", b"3")]
    if path == COMPLETIONS:
        fields.append((b"prompt", draw.choice((b'"Once upon a time"', b"[1,2,3,4]", values.few_characters(draw)))))
    elif path == RESPONSES and draw.random() < 0.5:
        fields.append((b"input", values.few_characters(draw)))
    else:
        message = b'[{"role":"user","content":' + values.few_characters(draw) + b"}]"
        fields.append((b"input" if path == RESPONSES else b"messages", message))
    draw.shuffle(fields)
    return fields


def _hostile(draw: random.Random, name: str) -> bytes:
    if name in ("messages", "input") and draw.random() < 0.8:
        return _messages(draw)
    if name in OF_FIELD and draw.random() < 0.45:
        return draw.choice(OF_FIELD[name])
    if name in ("prompt", "stop") and draw.random() < 0.4:
        return b"[" + b",".join(values.value(draw) for _ in range(draw.randint(1, 4))) + b"]"
    return values.value(draw)


def _messages(draw: random.Random) -> bytes:
    if draw.random() < 0.1:
        return b"[" + b",".join([b'{"role":"user","content":""}'] * draw.choice((100, 2_000, 20_000))) + b"]"
    return b"[" + b",".join(_message(draw) for _ in range(draw.randint(1, 3))) + b"]"


def _message(draw: random.Random) -> bytes:
    if draw.random() < 0.08:
        return values.value(draw)
    fields: Fields = [(b"role", draw.choice(ROLES[:4])), (b"content", values.few_characters(draw))]
    hostile = draw.choice(
        ("role", "content", "parts", "name", "tool_calls", "refusal", "audio", "tool_call_id", "twice", "type", "id",
         "call_id", "arguments", "output", "summary")
    )
    match hostile:
        case "role":
            fields[0] = (b"role", draw.choice((*ROLES, values.value(draw))))
        case "content":
            fields[1] = (b"content", values.value(draw))
        case "parts":
            fields[1] = (b"content", b"[" + b",".join(_part(draw) for _ in range(draw.randint(0, 3))) + b"]")
        case "twice":
            fields.append(draw.choice(fields))
        case _:
            fields.append((hostile.encode(), values.value(draw)))
    if draw.random() < 0.1:
        del fields[draw.randrange(len(fields))]
    return body_of(fields)


def _part(draw: random.Random) -> bytes:
    return draw.choice((
        b'{"type":"text","text":' + values.value(draw) + b"}", b'{"type":' + values.value(draw) + b',"text":"x"}',
        b'{"type":"image_url","image_url":{"url":' + values.value(draw) + b"}}", b'{"type":"text"}', values.value(draw),
        b'{"type":"input_audio","input_audio":{"data":"","format":"wav"}}', b'{"type":"text","text":"x"}',
        b'{"type":"tool_result","tool_use_id":"a","content":' + values.value(draw) + b"}",
        b'{"type":"tool_use","id":"a","name":"f","input":' + values.value(draw) + b"}",
        b'{"type":"thinking","thinking":' + values.value(draw) + b"}",
        b'{"type":"input_text","text":' + values.value(draw) + b"}", b'{"type":"refusal","refusal":"no"}',
    ))  # fmt: skip


def body_of(fields: Fields) -> bytes:
    return b"{" + b",".join(b'"' + name + b'":' + value for name, value in fields) + b"}"


def post(path: str, body: bytes, headers: Sequence[bytes] = (), content_type: bytes = b"application/json") -> bytes:
    """A whole HTTP request, with a true Content-Length."""
    head = [b"POST " + path.encode() + b" HTTP/1.1", b"Host: localhost", b"Content-Type: " + content_type, *headers,
            b"Content-Length: %d" % len(body)]  # fmt: skip
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def good_post(draw: random.Random, model: str, headers: Sequence[bytes] = (),
              more: Sequence[tuple[bytes, bytes]] = ()) -> bytes:  # fmt: skip
    path = draw.choice(ENDPOINTS)
    return post(path, body_of([*good_fields(draw, path, model), *more]), headers)


# -- bodies --------------------------------------------------------------------------------------------------------


def _body(draw: random.Random, model: str) -> Attack:
    path = draw.choice(ENDPOINTS)
    good = body_of(good_fields(draw, path, model))
    kind = draw.choice((*_BODIES, *_FRAMINGS))
    if kind in _FRAMINGS:
        return Attack(f"body:{kind}", *_FRAMINGS[kind](draw, path, good))
    body, headers, content_type = _BODIES[kind](draw, good)
    return Attack(f"body:{kind}", (Send(post(path, body, headers, content_type)),))


def _flipped(draw: random.Random, good: bytes) -> bytes:
    changed = bytearray(good)
    for _ in range(draw.randint(1, 8)):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


JSON = b"application/json"
_BODIES: dict[str, Callable[[random.Random, bytes], tuple[bytes, Sequence[bytes], bytes]]] = {
    "truncated": lambda draw, good: (good[: draw.randrange(len(good))], (), JSON),
    "flipped bytes": lambda draw, good: (_flipped(draw, good), (), JSON),
    "random bytes": lambda draw, good: (draw.randbytes(draw.choice((1, 50, 5_000))), (), JSON),
    "empty": lambda draw, good: (b"", (), JSON),
    "blank": lambda draw, good: (b" \n\t" * draw.choice((1, 300_000)), (), JSON),
    "blank around": lambda draw, good: (b" " * 300_000 + good + b"\n" * 300_000, (), JSON),
    "another value": lambda draw, good: (values.value(draw), (), JSON),
    "two values": lambda draw, good: (good + draw.choice((b"", b"\n", b",")) + good, (), JSON),
    "comment": lambda draw, good: (b"/* x */" + good + b"// x", (), JSON),
    "utf-8 with a mark": lambda draw, good: (b"\xef\xbb\xbf" + good, (), JSON),
    "utf-16": lambda draw, good: (good.decode("utf-8", "replace").encode("utf-16"), (), JSON),
    "utf-16 without a mark": lambda draw, good: (good.decode("utf-8", "replace").encode("utf-16-be"), (), JSON),
    "utf-32": lambda draw, good: (good.decode("utf-8", "replace").encode("utf-32-le"), (), JSON),
    "a charset": lambda draw, good: (good, (), JSON + b"; charset=" + draw.choice((b"latin-1", b"utf-7", b"x", b"\xff",
                                                                                   b""))),
    "a content type": lambda draw, good: (
        good, (),
        draw.choice((b"text/plain", b"", b"application/x-www-form-urlencoded", b"multipart/form-data",
                     b"application/json/x",
                     b"application/" + b"j" * 5_000, b"*/*", b"APPLICATION/JSON", b"application/vnd.api+json",
                     b";;;=")),
    ),
    "a form": lambda draw, good: (b"prompt=x&max_tokens=1", (), b"application/x-www-form-urlencoded"),
    "multipart": lambda draw, good: (b"--x\r\n\r\n" + good + b"\r\n--x--", (), b"multipart/form-data; boundary=x"),
    "gzip, true": lambda draw, good: (gzip.compress(good, mtime=0), (b"Content-Encoding: gzip",), JSON),
    "gzip, a lie": lambda draw, good: (good, (b"Content-Encoding: gzip",), JSON),
    "gzip bomb": lambda draw, good: (gzip.compress(b" " * 10_000_000, mtime=0), (b"Content-Encoding: gzip",), JSON),
    "br": lambda draw, good: (good, (b"Content-Encoding: br, deflate, identity",), JSON),
    "many unknown fields": lambda draw, good: (
        b"{" + b",".join(b'"f%d":%d' % (i, i) for i in range(draw.choice((1_000, 30_000)))) + b"," + good[1:], (), JSON
    ),
    "one field a thousand times": lambda draw, good: (b"{" + b'"temperature":0,' * 1_000 + good[1:], (), JSON),
    "a megabyte unknown": lambda draw, good: (b'{"x":"' + b"y" * 1_000_000 + b'",' + good[1:], (), JSON),
    "a long key": lambda draw, good: (b'{"' + b"k" * 200_000 + b'":1,' + good[1:], (), JSON),
}  # fmt: skip


def _chunked(path: str, chunks: bytes, headers: bytes = b"") -> bytes:
    return (
        b"POST " + path.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + headers
        + b"Transfer-Encoding: chunked\r\n\r\n" + chunks
    )  # fmt: skip


def _length(path: str, length: bytes, body: bytes, headers: bytes = b"") -> bytes:
    return (
        b"POST " + path.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + headers
        + b"Content-Length: " + length + b"\r\n\r\n" + body
    )  # fmt: skip


def _one_by_one(good: bytes, extension: bytes = b"") -> bytes:
    return b"".join(b"1" + extension + b"\r\n" + good[i : i + 1] + b"\r\n" for i in range(len(good))) + b"0\r\n\r\n"


Framing = Callable[[random.Random, str, bytes], tuple[tuple[Step, ...], Due]]
_FRAMINGS: dict[str, Framing] = {
    "chunks of one byte": lambda draw, path, good: ((Send(_chunked(path, _one_by_one(good))),), "answer"),
    "long chunk extensions": lambda draw, path, good: (
        (Send(_chunked(path, _one_by_one(good, b";x=" + b"y" * draw.choice((10, 1_000))))),), "answer or close"),
    "trailers": lambda draw, path, good: (
        (Send(_chunked(path, b"%x\r\n" % len(good) + good + b"\r\n0\r\nX-Trailer: " + b"t" * 100 + b"\r\n\r\n")),),
        "answer"),
    "an odd chunk size": lambda draw, path, good: (
        (Send(_chunked(path, draw.choice((b"-1", b"F" * 17, b"", b"0x5", b"zz", b"5 ",
                                          b"0" * 1_000 + b"5")) + b"\r\nx\r\n")),),
        "close"),
    "no last chunk": lambda draw, path, good: ((Send(_chunked(path, b"%x\r\n" % len(good) + good + b"\r\n")),),
                                               "close"),
    "no last chunk, and left": lambda draw, path, good: (
        (Send(_chunked(path, b"%x\r\n" % len(good) + good)), Leave(draw.random() < 0.5)), "nothing"),
    "both lengths": lambda draw, path, good: (
        (Send(_chunked(path, b"0\r\n\r\n", b"Content-Length: %d\r\n" % len(good)) + good),), "answer or close"),
    "two lengths": lambda draw, path, good: (
        (Send(_length(path, b"%d" % len(good), good, b"Content-Length: %d\r\n" % draw.choice((len(good), 5)))),),
        "answer or close"),
    "an odd length": lambda draw, path, good: (
        (Send(_length(path, draw.choice((b"-1", b"+5", b"1" + b"0" * 30, b"9" * 5_000, b"0x10", b"1e3", b"5, 5",
                                         b"\xb2",
                                         b"", b"18446744073709551616", b"4 2")), good)),), "close"),
    "a huge length": lambda draw, path, good: (
        (Send(_length(path, draw.choice((b"99999999999", b"9223372036854775807", b"70000000")), good)),), "close"),
    "a huge length, asked first": lambda draw, path, good: (
        (Send(_length(path, b"99999999999", b"", b"Expect: 100-continue\r\n")),), "close"),
    "more than its length": lambda draw, path, good: (
        (Send(_length(path, b"%d" % (len(good) // 2), good)),), "answer or close"),
    "less than its length": lambda draw, path, good: ((Send(_length(path, b"%d" % (2 * len(good)), good)),), "close"),
    "less than its length, and left": lambda draw, path, good: (
        (Send(_length(path, b"%d" % (2 * len(good)), good)), Leave(draw.random() < 0.5)), "nothing"),
    "less than its length, and finished": lambda draw, path, good: (
        (Send(_length(path, b"%d" % (2 * len(good)), good)), Finish()), "close"),
    "asked first": lambda draw, path, good: (
        (Send(_length(path, b"%d" % len(good), b"", b"Expect: 100-continue\r\n")), Wait(0.05), Send(good)), "answer"),
    "asked something else first": lambda draw, path, good: (
        (Send(_length(path, b"%d" % len(good), good, b"Expect: 200-ok\r\n")),), "answer or close"),
    "an unknown encoding": lambda draw, path, good: (
        (Send(_length(path, b"%d" % len(good), good,
                      b"Transfer-Encoding: " + draw.choice((b"gzip", b"identity", b"chunked, gzip",
                                                            b"xchunked")) + b"\r\n")),),
        "close"),
    "no length": lambda draw, path, good: (
        (Send(b"POST " + path.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\r\n"),),
        "answer"),
}  # fmt: skip


# -- headers -------------------------------------------------------------------------------------------------------


def _headers(draw: random.Random, model: str) -> Attack:
    kind = draw.choice(tuple(_HEADERS))
    headers, valid = _HEADERS[kind](draw)
    return Attack(f"headers:{kind}", (Send(good_post(draw, model, headers)),), "answer" if valid else "answer or close")


def _garbage(draw: random.Random, size: int) -> bytes:
    """Bytes that a header's value may have."""
    return bytes(draw.choice(range(0x21, 0x7F)) for _ in range(size))


_HEADERS: dict[str, Callable[[random.Random], tuple[Sequence[bytes], bool]]] = {
    "long": lambda draw: ([b"X-Long: " + b"x" * draw.choice((5_000, 30_000))], False),
    "very long": lambda draw: ([b"X-Long: " + b"x" * draw.choice((70_000, 1_000_000))], False),
    "a long name": lambda draw: ([b"X" * draw.choice((300, 100_000)) + b": x"], False),
    "many": lambda draw: ([b"X-%d: x" % i for i in range(draw.choice((50, 90)))], True),
    "very many": lambda draw: ([b"X-%d: x" % i for i in range(draw.choice((300, 20_000)))], False),
    "the same many times": lambda draw: ([draw.choice((b"X-Same: x", b"Cookie: a=b", b"Accept: */*"))] * 60, True),
    "two hosts": lambda draw: ([b"Host: other"], False),
    "an odd host": lambda draw: ([b"Host: " + draw.choice((b"", b"a b", b"\xff", b"[::1", b"x:99999",
                                                           b"evil.example"))], False),
    "odd bytes": lambda draw: (
        [b"X-Odd: " + bytes(draw.choice(range(0x80, 0x100)) for _ in range(20))], False),
    "control bytes": lambda draw: ([b"X-Odd: a" + draw.choice((b"\x00", b"\x01", b"\x7f", b"\x1b", b"\x0b")) + b"b"],
                                   False),
    "a bare line feed": lambda draw: ([b"X-Odd: a\nX-Other: b"], False),
    "a bare return": lambda draw: ([b"X-Odd: a\rX-Other: b"], False),
    "folded": lambda draw: ([b"X-Odd: a\r\n b"], False),
    "no colon": lambda draw: ([b"X-Odd"], False),
    "no name": lambda draw: ([b": x"], False),
    "a blank in the name": lambda draw: ([draw.choice((b"X Odd: x", b"X-Odd : x", b" X-Odd: x"))], False),
    "an odd name": lambda draw: ([draw.choice((b"\xff: x", b"X(: x", b"\x00: x", b'"x": x'))], False),
    "no value": lambda draw: ([b"X-Empty:", b"Accept:"], True),
    "request id": lambda draw: (
        [b"X-Request-Id: " + draw.choice((b"", b"x", b"x" * 128, b"x" * 129, b"x" * 20_000, b'"}{', b"a b", b"a,b",
                                          b"..%00",
                                          b"<script>", b"%0d%0aX-Injected: 1", b"same", b"-", b"cmpl-1", b"{}",
                                          b"$(x)"))], True),
    "request id of odd bytes": lambda draw: ([b"X-Request-Id: " + draw.choice((b"\xff\xfe", b"\xc3\xa9", b"a\tb"))],
                                             False),
    "two request ids": lambda draw: ([b"X-Request-Id: one", b"X-Request-Id: two"], True),
    "authorization": lambda draw: (
        [b"Authorization: " + draw.choice((b"", b"Bearer", b"Bearer ", b"Bearer " + _garbage(draw, 40), b"bearer x y z",
                                           b"Basic " + _garbage(draw, 20), b"Bearer " + b"k" * 4_000,
                                           b"Digest a=b,,,"))], True),
    "authorization of odd bytes": lambda draw: ([b"Authorization: Bearer \xff\xc3\x28"], False),
    "two authorizations": lambda draw: ([b"Authorization: Bearer a", b"Authorization: Bearer b"], True),
    "origin": lambda draw: (
        [b"Origin: " + draw.choice((b"null", b"http://evil.example", b"", b"*", b"http://" + b"o" * 4_000))], True),
    "accept": lambda draw: ([b"Accept: " + draw.choice((b"text/html", b"q=;;", b"application/xml;q=NaN"))], True),
    "accept encoding": lambda draw: ([b"Accept-Encoding: gzip, br, *;q=0, identity;q=0"], True),
    "ranges and conditions": lambda draw: ([b"Range: bytes=0-1,5-2", b"If-None-Match: *", b"If-Match: x"], True),
    "forwarded": lambda draw: (
        [b"X-Forwarded-For: \x22;--, ::1", b"X-Forwarded-Proto: javascript", b"Forwarded: for=_x",
         b"X-Forwarded-Host: "], True),
    "websocket": lambda draw: (
        [b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: eA=="],
        False),
    "h2c": lambda draw: (
        [b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__"], False),
    "connection": lambda draw: (
        [b"Connection: " + draw.choice((b"close, keep-alive", b"content-length", b"x" * 500, b"TE", b",,,"))], True),
    "keep alive": lambda draw: ([b"Keep-Alive: timeout=" + b"9" * 30, b"Proxy-Connection: keep-alive"], True),
}  # fmt: skip


# -- methods and paths ---------------------------------------------------------------------------------------------

METHODS = ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE")
ODD_METHODS = ("FOO", "get", "G E T", "POST\x00", "M" * 10_000, "", "PROPFIND", "PRI", "CONNECT")
PATHS = (
    *ENDPOINTS, "/v1/models", "/v1/models/smollm2-135m", "/health", "/ready", "/version", "/metrics",
    "/openapi.json",
    "/", "//v1/completions", "/v1/completions/", "/v1/completions;x=1", "/v1/%63ompletions", "/v1/completions%00",
    "/v1/completions%ff", "/v1/completions%0d%0aX: y", "/v1/models/%2e%2e%2fetc", "/v1/models/%ff%fe",
    "/v1/models/%f0%9f%98%80",
    "/v1/models/" + "m" * 5_000, "/v1/models/", "/v1/models//", "/../../etc/passwd", "/%", "/%zz",
    "/v1/completions?x=%ff",
    "/v1/completions?" + "q=1&" * 2_000, "/V1/COMPLETIONS", "/v1/embeddings", "/docs",
    "/v1/responses/resp_x", "/v1/responses/%ff/cancel",
    "/v1/responses/x/input_items?limit=-1", "/v1/messages/count_tokens", "/favicon.ico",
    "/.git/config", "/v1/chat/completions/x", "/v1/completions#x", "/health?x", "/metrics?name[]=x", "/" + "a/" * 2_000,
)  # fmt: skip
ODD_TARGETS = ("*", "", "v1/completions", "http://evil.example/v1/completions", "http://[::1/x", "localhost:80",
               "/\x80",
               "/a b", "/" + "x" * 200_000, "/\x00", "http://", "//", "/?" + "x" * 100_000, "ftp://a/b",
               "/é")  # fmt: skip
PREFACES = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 300,
    b"GET / HTTP/0.9\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1\r\n\r\n", b"GET /\r\n\r\n",
    b"\r\n\r\n\r\n\r\n",
    b"GET / HTTP/1.1\n\n", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"{}\r\n\r\n", b"\x00" * 1_000,
    b"GET / JUNK/1.1\r\nHost: x\r\n\r\n", b"GET  /health  HTTP/1.1\r\nHost: x\r\n\r\n", b"*1\r\n$4\r\nPING\r\n",
)  # fmt: skip


def _target(draw: random.Random, model: str) -> Attack:
    kind = draw.choices(("method", "path", "odd method", "odd target", "version", "preface"), (4, 4, 2, 2, 1, 2))[0]
    match kind:
        case "method":
            method = draw.choice(METHODS)
            return _plain(f"target:{method}", method, draw.choice(PATHS[:11]), "answer")
        case "path":
            method = draw.choice(("GET", "GET", "HEAD", "OPTIONS", "DELETE"))
            path = draw.choice(PATHS)
            return _plain(
                "target:path", method, path, "answer" if len(path) < 4_000 and "#" not in path else "answer or close"
            )
        case "odd method":
            return _plain("target:odd method", draw.choice(ODD_METHODS), draw.choice(PATHS[:11]), "close")
        case "odd target":
            return _plain("target:odd target", draw.choice(METHODS[:5]), draw.choice(ODD_TARGETS), "close")
        case "version":
            old = good_post(draw, model, [b"Connection: keep-alive"]).replace(b"HTTP/1.1", b"HTTP/1.0", 1)
            return Attack("target:HTTP/1.0", (Send(old),))
        case _:
            return Attack("target:preface", (Send(draw.choice(PREFACES)), Finish()), "close", ("GET",))


def _plain(name: str, method: str, path: str, due: Due) -> Attack:
    request = f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode("latin-1")
    return Attack(name, (Send(request),), due, (method,))


# -- connections ---------------------------------------------------------------------------------------------------

PIPELINED = (2, 5, 10)


def _connection(draw: random.Random, model: str) -> Attack:
    kind = draw.choice(tuple(_CONNECTIONS))
    return _CONNECTIONS[kind](f"connection:{kind}", draw, model)


def _streaming(draw: random.Random, model: str, tokens: int) -> bytes:
    """A request for a stream of some length."""
    path = draw.choice(ENDPOINTS)
    limit = b"max_output_tokens" if path == RESPONSES else b"max_tokens"
    fields = [f for f in good_fields(draw, path, model) if f[0] not in (limit, b"stream")]
    more = [(limit, b"%d" % tokens), (b"stream", b"true"), (b"ignore_eos", b"true")]
    return post(path, body_of(fields + more))


def _nothing(name: str, *steps: Step, small_window: bool = False) -> Attack:
    return Attack(name, steps, "nothing", (), small_window)


def _part_of(draw: random.Random, data: bytes) -> bytes:
    """Some of its bytes from the start, but not all of its head."""
    return data[: draw.randint(1, data.index(b"\r\n\r\n"))]


def _body_part_of(draw: random.Random, data: bytes) -> bytes:
    return data[: draw.randint(data.index(b"\r\n\r\n") + 4, len(data) - 1)]


def _pipelined(draw: random.Random, model: str, count: int) -> list[bytes]:
    requests = [good_post(draw, model) for _ in range(count)]
    if draw.random() < 0.5:
        requests[draw.randrange(count)] = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    return requests


def _all_pipelined(name: str, draw: random.Random, model: str) -> Attack:
    requests = _pipelined(draw, model, draw.choice(PIPELINED))
    return Attack(name, (Send(b"".join(requests)),), "answer", ("POST",) * len(requests))


Connection = Callable[[str, random.Random, str], Attack]
_CONNECTIONS: dict[str, Connection] = {
    "opened and left": lambda name, draw, model: _nothing(name, Wait(draw.choice((0, 0.05))),
                                                          Leave(draw.random() < 0.5)),
    "opened and silent": lambda name, draw, model: Attack(name, (), "close", ()),
    "half a head, and left": lambda name, draw, model: _nothing(
        name, Send(_part_of(draw, good_post(draw, model))), Leave(draw.random() < 0.5)),
    "half a head, and silent": lambda name, draw, model: Attack(
        name, (Send(_part_of(draw, good_post(draw, model))),), "close", ()),
    "half a body, and left": lambda name, draw, model: _nothing(
        name, Send(_body_part_of(draw, good_post(draw, model))), Leave(draw.random() < 0.5)),
    "half a body, and silent": lambda name, draw, model: Attack(
        name, (Send(_body_part_of(draw, good_post(draw, model))),), "close", ()),
    "a slow head": lambda name, draw, model: Attack(
        name, (Send(good_post(draw, model), piece=draw.choice((16, 64)), every_s=0.1),)),
    "a byte a second": lambda name, draw, model: Attack(
        name, (Send(good_post(draw, model)[:40], piece=1, every_s=1.0),), "close", ()),
    "a slow body": lambda name, draw, model: Attack(
        name, (Send((request := good_post(draw, model))[: request.index(b"{")]),
               Send(request[request.index(b"{") :], piece=8, every_s=0.1))),
    "left in mid-stream": lambda name, draw, model: _nothing(
        name, Send(_streaming(draw, model, 40)), ReadSome(draw.choice((1, 300, 2_000))), Leave(draw.random() < 0.7)),
    "left before the answer": lambda name, draw, model: _nothing(
        name, Send(draw.choice((_streaming(draw, model, 40), good_post(draw, model)))), Wait(draw.choice((0, 0.01,
                                                                                                          0.05))),
        Leave(draw.random() < 0.7)),
    "finished sending": lambda name, draw, model: Attack(name, (Send(good_post(draw, model)), Finish()),
                                                         "answer or close"),
    "pipelined": _all_pipelined,
    "pipelined, and left": lambda name, draw, model: _nothing(
        name, Send(b"".join(_pipelined(draw, model, draw.choice(PIPELINED)))), ReadSome(1), Leave(True)),
    "pipelined with garbage behind": lambda name, draw, model: Attack(
        name, (Send(good_post(draw, model) + draw.choice((b"\x00", b"GARBAGE\r\n\r\n", b"}" * 50, b"\r\n\r\n"))),),
        "answer or close"),
    "never reading": lambda name, draw, model: _nothing(
        name, Send(_streaming(draw, model, 60)), Wait(2.0), Leave(True), small_window=True),
    "sent in two": lambda name, draw, model: Attack(
        name, (Send((request := good_post(draw, model))[: (cut := draw.randint(1, len(request) - 1))]), Wait(0.02),
               Send(request[cut:]))),
}  # fmt: skip
