"""The openai SDK against the real server and the real model."""

from __future__ import annotations

import asyncio
import itertools

import openai
import pytest

from tests.e2e.conftest import Server

MODEL = "smollm2-135m"
QUESTION = [{"role": "user", "content": "What is the capital of France? Answer with one word."}]


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage and answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_says_the_same(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=30)
    stream = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, max_tokens=30, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage and whole.usage
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens, "whether they were found or not"


def test_a_seed_repeats(client: openai.OpenAI) -> None:
    def ask(seed: int) -> str:
        return client.completions.create(
            model=MODEL, prompt="Once upon a time", max_tokens=16, seed=seed
        ).choices[0].text  # fmt: skip

    assert ask(1) == ask(1) != ask(2)


def test_completions_of_many_prompts(client: openai.OpenAI) -> None:
    prompts = ["The capital of France is", "One, two, three, four,", "The sun rises in the"]
    answer = client.completions.create(model=MODEL, prompt=prompts, max_tokens=6, temperature=0, n=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    for choice, expected in zip(answer.choices, ["Paris", "five", "sky"], strict=True):
        assert expected in choice.text


def test_token_ids_and_logprobs(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=[504, 3575, 282, 4649, 314], max_tokens=4, temperature=0,
                                       logprobs=3)  # fmt: skip
    logprobs = answer.choices[0].logprobs
    assert logprobs and logprobs.tokens and logprobs.token_logprobs and logprobs.top_logprobs
    assert "".join(logprobs.tokens) == answer.choices[0].text
    for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert len(top) == 3
        assert top[token] == logprob == max(top.values())


def test_chat_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=3, temperature=0,
                                            logprobs=True, top_logprobs=2)  # fmt: skip
    logprobs = answer.choices[0].logprobs
    assert logprobs and logprobs.content
    assert all(len(position.top_logprobs) == 2 for position in logprobs.content)


def test_stop_strings_and_penalties(client: openai.OpenAI) -> None:
    counting = client.completions.create(
        model=MODEL, prompt="1, 2, 3, 4, 5,", max_tokens=40, temperature=0, stop=["9"]
    )  # fmt: skip
    assert counting.choices[0].finish_reason == "stop" and "9" not in counting.choices[0].text
    free = client.completions.create(model=MODEL, prompt="la la la la la la", max_tokens=12, temperature=0)
    punished = client.completions.create(
        model=MODEL, prompt="la la la la la la", max_tokens=12, temperature=0, frequency_penalty=2.0,
        extra_body={"repetition_penalty": 2.0},
    )  # fmt: skip
    assert free.choices[0].text != punished.choices[0].text


async def test_twenty_streams_and_five_that_leave(server: Server) -> None:
    """Those that stay get every token; the KV of all of them is free in the end."""
    tokens, leavers = 40, {3, 7, 8, 12, 19}
    client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)

    async def one(number: int) -> int:
        stream = await client.completions.create(
            model=MODEL, prompt=f"Story number {number}: " + "once upon a time " * (5 * number), max_tokens=tokens,
            stream=True, extra_body={"ignore_eos": True},
        )  # fmt: skip
        chunks = 0
        async for _ in stream:
            chunks += 1
            if number in leavers and chunks == 5:
                await stream.close()
                break
        return chunks

    counts = await asyncio.gather(*map(one, range(20)))
    assert [count == tokens for count in counts] == [number not in leavers for number in range(20)]
    await asyncio.to_thread(server.wait_until_free)


def test_a_client_that_leaves_before_its_first_token(server: Server, moby_dick: str) -> None:
    patience = openai.Timeout(60, read=0.5)
    hasty = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=patience)
    with pytest.raises(openai.APITimeoutError):
        hasty.completions.create(
            model=MODEL, prompt=moby_dick[:24_000], max_tokens=1000, extra_body={"ignore_eos": True}
        )
    server.wait_until_free()


def test_metrics_after_some_traffic(server: Server, client: openai.OpenAI) -> None:
    before = server.gauge("vllm:generation_tokens")
    list(itertools.islice(client.completions.create(model=MODEL, prompt="Hi", max_tokens=7, stream=True,
                                                    extra_body={"ignore_eos": True}), 100))  # fmt: skip
    assert server.gauge("vllm:generation_tokens") == before + 7
