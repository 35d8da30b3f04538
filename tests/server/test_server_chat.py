from __future__ import annotations

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessageParam

from tests.server.fake_engine import MODEL, NO_TEXT_YET
from tests.server.live_server import LiveServer

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]


def test_a_chat(client: openai.OpenAI, server: LiveServer) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HELLO)
    ChatCompletion.model_validate(answer.model_dump(), strict=True)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == (
        "assistant",
        "Hello world",
        "stop",
    )
    assert choice.logprobs is None
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 11
    assert server.prompt() == "<user>Hello"


def test_roles_and_content_parts(client: openai.OpenAI, server: LiveServer) -> None:
    client.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "developer", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": "go on"},
        ],
        extra_body={"chat_template_kwargs": {"thinking": False}},
    )
    assert server.prompt() == "<thinking=False><system>Be kind.<user>one\ntwo<assistant>yes<user>go on"


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_both_names_of_the_limit(client: openai.OpenAI, server: LiveServer, field: str) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, extra_body={field: 4})
    assert answer.choices[0].message.content == "Hell"
    assert answer.choices[0].finish_reason == "length"


def test_logprobs(client: openai.OpenAI, server: LiveServer) -> None:
    server.engine.answer = "é!"
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, logprobs=True, top_logprobs=2)
    ChatCompletion.model_validate(answer.model_dump(), strict=True)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert [(token.token, token.logprob, token.bytes) for token in logprobs.content] == [
        ("é", -0.5, [195, 169]),
        ("!", -0.5, [33]),
    ]
    assert [[top.token for top in token.top_logprobs] for token in logprobs.content] == [
        ["é", "x"],
        ["!", "x"],
    ]
    plain = client.chat.completions.create(model=MODEL, messages=HELLO, logprobs=True)
    assert plain.choices[0].logprobs is not None and plain.choices[0].logprobs.content is not None
    assert plain.choices[0].logprobs.content[0].top_logprobs == []


def test_n(client: openai.OpenAI, server: LiveServer) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (11, 33)


def test_stream(client: openai.OpenAI, server: LiveServer) -> None:
    server.engine.answer = f"H{NO_TEXT_YET}i"
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=HELLO, stream=True, logprobs=True, stream_options={"include_usage": True}
        )
    )
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk.model_dump(), strict=True)
    *streamed, usage = chunks
    assert [(c.choices[0].delta.role, c.choices[0].delta.content) for c in streamed] == [
        ("assistant", ""),
        (None, "H"),
        (None, ""),
        (None, "i"),
    ]
    assert [c.choices[0].finish_reason for c in streamed] == [None, None, None, "stop"]
    assert [c.choices[0].logprobs is not None for c in streamed] == [False, True, True, True]
    assert usage.choices == [] and usage.usage is not None
    assert (usage.usage.prompt_tokens, usage.usage.completion_tokens) == (11, 3)


def test_stream_of_several_choices(client: openai.OpenAI, server: LiveServer) -> None:
    roles, texts = [], ["", ""]
    for chunk in client.chat.completions.create(model=MODEL, messages=HELLO, stream=True, n=2):
        (choice,) = chunk.choices
        if choice.delta.role:
            roles.append(choice.index)
            assert texts[choice.index] == ""
        texts[choice.index] += choice.delta.content or ""
    assert sorted(roles) == [0, 1]
    assert texts == ["Hello world"] * 2


def test_tools_that_may_not_be_used_are_let_through(client: openai.OpenAI, server: LiveServer) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    answer = client.chat.completions.create(
        model=MODEL, messages=HELLO, extra_body={"tools": [tool], "tool_choice": "none"}
    )
    assert answer.choices[0].message.content == "Hello world"
    client.chat.completions.create(model=MODEL, messages=HELLO, response_format={"type": "text"}, user="me")
