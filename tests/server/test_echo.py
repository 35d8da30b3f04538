"""Prompts that are part of their answers, and log-probabilities of prompts."""

from __future__ import annotations

import httpx2
import openai
import pytest

from tests.server.fake_engine import MODEL
from tests.server.live_server import LiveServer


@pytest.mark.parametrize("prompt", ["ab", [97, 98]])
def test_echo(client: openai.OpenAI, server: LiveServer, prompt: str | list[int]) -> None:
    answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=3, echo=True)
    assert answer.choices[0].text == "abHel" and answer.usage and answer.usage.completion_tokens == 3
    stream = client.completions.create(model=MODEL, prompt=prompt, max_tokens=3, echo=True, stream=True)
    assert [chunk.choices[0].text for chunk in stream] == ["abH", "e", "l"]


def test_echo_with_logprobs(client: openai.OpenAI, server: LiveServer) -> None:
    """As an evaluation asks for them; a stream says the same."""
    ask = {"model": MODEL, "prompt": ["abc", "de"], "max_tokens": 1, "echo": True, "logprobs": 2}
    whole = [choice.logprobs for choice in client.completions.create(**ask).choices]
    assert [logprobs.tokens for logprobs in whole if logprobs] == [["a", "b", "c", "H"], ["d", "e", "H"]]
    first = whole[0]
    assert first and first.token_logprobs == [None, -0.5, -0.5, -0.5]
    assert first.top_logprobs and first.top_logprobs[0] is None
    assert first.top_logprobs[1] == {"b": -0.5, "x": -1.0} and first.text_offset == [0, 1, 2, 3]
    pieces = {0: [], 1: []}
    for chunk in client.completions.create(**ask, stream=True):
        pieces[chunk.choices[0].index].append(chunk.choices[0].logprobs)
    assert list(pieces.values()) == [[logprobs] for logprobs in whole]


@pytest.mark.parametrize("stream", [False, True])
def test_nothing_but_the_prompt(http: httpx2.Client, server: LiveServer, stream: bool) -> None:
    ask = {"prompt": "abc", "max_tokens": 0, "echo": True, "logprobs": 1, "stream": stream}
    answer = http.post("/v1/completions", json=ask)
    assert answer.status_code == 200
    if stream:
        (line, done) = [line for line in answer.text.splitlines() if line]
        assert done == "data: [DONE]" and '"text":"abc"' in line and '"finish_reason":"length"' in line
        assert '"tokens":["a","b","c"]' in line
        return
    (choice,) = answer.json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("abc", "length")
    assert choice["logprobs"]["tokens"] == ["a", "b", "c"]
    usage = answer.json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (3, 0, 3)
    without = http.post("/v1/completions", json={"prompt": "abc", "max_tokens": 0, "logprobs": 1}).json()["choices"][0]
    assert without["text"] == "" and without["logprobs"]["tokens"] == []


def test_prompt_logprobs_of_vllm(http: httpx2.Client, server: LiveServer) -> None:
    completion = http.post("/v1/completions", json={"prompt": "ab", "max_tokens": 1, "prompt_logprobs": 1}).json()
    none, second = completion["choices"][0]["prompt_logprobs"]
    assert none is None and second == {"98": {"logprob": -0.5, "rank": 1, "decoded_token": "b"}}
    ask = {"messages": [{"role": "user", "content": "x"}], "prompt_logprobs": 0, "max_tokens": 1}
    chat = http.post("/v1/chat/completions", json=ask).json()
    assert len(chat["prompt_logprobs"]) == len("<user>x")
    assert "prompt_logprobs" not in http.post("/v1/completions", json={"prompt": "ab"}).json()["choices"][0]


def test_a_long_prompt_is_written_off_the_loop(http: httpx2.Client, server: LiveServer) -> None:
    ask = {"prompt": "ab" * 200, "max_tokens": 1, "prompt_logprobs": 5, "echo": True, "logprobs": 5}
    choice = http.post("/v1/completions", json=ask).json()["choices"][0]
    assert len(choice["prompt_logprobs"]) == 400 and len(choice["logprobs"]["tokens"]) == 401


def test_biases_and_least_lengths_reach_the_engine(http: httpx2.Client, server: LiveServer) -> None:
    body = {"prompt": "x", "logit_bias": {"17": -100, "3": 2.5}, "min_tokens": 4, "max_tokens": 9}
    assert http.post("/v1/completions", json=body).status_code == 200
    (params,) = server.engine.params.values()
    assert params.logit_bias == ((3, 2.5), (17, -100)) and params.min_tokens == 4
