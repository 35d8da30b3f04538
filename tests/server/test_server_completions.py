from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import httpx2
import openai
import pytest
from openai.types import Completion

from tests.server.fake_engine import MODEL, NO_TEXT_YET, FakeEngine, FakeTokenizer
from tests.server.live_server import LiveServer, live_server


def test_a_text_prompt(client: openai.OpenAI, server: LiveServer) -> None:
    answer = client.completions.create(model=MODEL, prompt="Say hi")
    Completion.model_validate(answer.model_dump(), strict=True)
    assert answer.object == "text_completion"
    assert [(c.index, c.text, c.finish_reason) for c in answer.choices] == [(0, "Hello world", "stop")]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        6,
        11,
        17,
    )


def test_max_tokens_is_16_by_default_and_null_is_all_that_fits(
    client: openai.OpenAI, server: LiveServer
) -> None:
    server.engine.answer = "a" * 100
    assert client.completions.create(model=MODEL, prompt="x").choices[0].text == "a" * 16
    assert client.completions.create(model=MODEL, prompt="x").choices[0].finish_reason == "length"
    assert client.completions.create(model=MODEL, prompt="x", max_tokens=None).choices[0].text == "a" * 100


@pytest.mark.parametrize(
    ("prompt", "token_ids"),
    [
        ("ab", [[97, 98]]),
        (["ab", "c"], [[97, 98], [99]]),
        ([97, 98], [[97, 98]]),
        ([[97], [98, 99]], [[97], [98, 99]]),
    ],
)
def test_the_four_kinds_of_prompt(
    client: openai.OpenAI, server: LiveServer, prompt: list[int], token_ids: list[list[int]]
) -> None:
    answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=1)
    assert list(server.engine.prompts.values()) == token_ids
    assert [choice.index for choice in answer.choices] == list(range(len(token_ids)))
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(map(len, token_ids))


def test_prompts_times_n_run_at_the_same_time(client: openai.OpenAI, server: LiveServer) -> None:
    server.engine.hold()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(
            client.completions.create, model=MODEL, prompt=["a", "b"], n=2, seed=7, max_tokens=3
        )
        ids = [server.engine.admitted.get(timeout=30) for _ in range(4)]
        server.engine.release()
        answer = waiting.result(timeout=30)
    assert [server.engine.prompts[i] for i in ids] == [[97], [97], [98], [98]]
    assert [server.engine.params[i].seed for i in ids] == [7, 8, 7, 8]
    assert len(set(ids)) == 4
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 12)


def test_sampling_fields_reach_the_engine(client: openai.OpenAI, server: LiveServer) -> None:
    client.completions.create(
        model=MODEL,
        prompt="x",
        max_tokens=4,
        temperature=0,
        top_p=0.5,
        seed=3,
        stop="END",
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        extra_body={
            "top_k": 7,
            "min_p": 0.1,
            "repetition_penalty": 1.2,
            "ignore_eos": True,
            "stop_token_ids": [5],
            "include_stop_str_in_output": True,
        },
    )
    (params,) = server.engine.params.values()
    assert (params.temperature, params.top_p, params.seed, params.stop) == (0.0, 0.5, 3, ("END",))
    assert (params.top_k, params.min_p, params.repetition_penalty) == (7, 0.1, 1.2)
    assert (params.presence_penalty, params.frequency_penalty) == (0.5, -0.5)
    assert params.ignore_eos and params.stop_token_ids == (5,) and params.include_stop_str_in_output


def test_what_the_models_makers_advise_holds_where_a_request_says_nothing(
    http: httpx2.Client, server: LiveServer
) -> None:
    server.engine.default_sampling = {"temperature": 0.25, "top_k": 20, "repetition_penalty": 1.1}
    try:
        http.post("/v1/completions", json={"prompt": "x", "top_p": 0.5, "temperature": None})
        http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}], "temperature": 0})
    finally:
        server.engine.default_sampling = {}
    told, chat = server.engine.params.values()
    assert (told.temperature, told.top_p, told.top_k, told.repetition_penalty) == (0.25, 0.5, 20, 1.1)
    assert (chat.temperature, chat.top_p, chat.top_k) == (0.0, 1.0, 20)


def test_load_generators_fields_are_let_through(client: openai.OpenAI, server: LiveServer) -> None:
    extra = {
        "min_tokens": 4,
        "ignore_eos": True,
        "use_beam_search": False,
        "echo": False,
        "top_k": -1,
        "user": "me",
    }
    answer = client.completions.create(model=MODEL, prompt="x", max_tokens=4, extra_body=extra, logit_bias={})
    assert answer.choices[0].text == "Hell"


def test_logprobs(client: openai.OpenAI, server: LiveServer) -> None:
    answer = client.completions.create(model=MODEL, prompt="x", max_tokens=3, logprobs=2)
    logprobs = Completion.model_validate(answer.model_dump(), strict=True).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["H", "e", "l"]
    assert logprobs.token_logprobs == [-0.5] * 3
    assert logprobs.top_logprobs == [{"H": -0.5, "x": -1.0}, {"e": -0.5, "x": -1.0}, {"l": -0.5, "x": -1.0}]
    assert logprobs.text_offset == [0, 1, 2]
    only_chosen = client.completions.create(model=MODEL, prompt="x", max_tokens=1, logprobs=0)
    assert only_chosen.choices[0].logprobs is not None
    assert only_chosen.choices[0].logprobs.top_logprobs == [{"H": -0.5}]


def test_stream_sends_one_chunk_for_each_token(client: openai.OpenAI, server: LiveServer) -> None:
    server.engine.answer = f"ab{NO_TEXT_YET}c"
    chunks = list(client.completions.create(model=MODEL, prompt="x", stream=True, logprobs=1))
    for chunk in chunks:
        Completion.model_validate(chunk.model_dump() | {"choices": []}, strict=True)
    assert [chunk.choices[0].text for chunk in chunks] == ["a", "b", "", "c"]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, None, "stop"]
    assert [chunk.choices[0].logprobs.text_offset for chunk in chunks if chunk.choices[0].logprobs] == [
        [0], [1], [2], [2],
    ]  # fmt: skip
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


def test_one_call_does_not_fill_the_queue(client: openai.OpenAI, server: LiveServer) -> None:
    """Of 20 choices as many run at once as a sixteenth of what may wait, and then the next ones."""
    engine = server.engine
    assert engine.config.max_waiting == 64
    engine.hold()
    stream = client.completions.create(model=MODEL, prompt=["a"] * 20, max_tokens=2, stream=True)
    first = [engine.admitted.get(timeout=30) for _ in range(4)]
    assert [request_id.rpartition("-")[2] for request_id in first] == ["0", "1", "2", "3"]
    assert client.models.list().data  # the server has had its turn since, and has admitted no more
    assert engine.admitted.empty()
    engine.release()
    ended = [choice.index for chunk in stream for choice in chunk.choices if choice.finish_reason]
    assert sorted(ended) == list(range(20))


def test_stream_of_several_choices(client: openai.OpenAI, server: LiveServer) -> None:
    texts = ["", "", "", ""]
    chunks = client.completions.create(
        model=MODEL, prompt=["a", "b"], n=2, stream=True, stream_options={"include_usage": True}
    )
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
        last = chunk
    assert texts == ["Hello world"] * 4
    assert last.choices == [] and last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (2, 44)


def test_the_stream_on_the_wire(http: httpx2.Client, server: LiveServer) -> None:
    body = {"prompt": "x", "max_tokens": 2, "stream": True, "stream_options": {"include_usage": True}}
    answer = http.post("/v1/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert len(events) == 5  # two tokens, usage, DONE, and the end
    assert all('"usage":null' in event for event in events[:2])


def test_usage_in_every_chunk(http: httpx2.Client, server: LiveServer) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"prompt": "xy", "max_tokens": 2, "stream": True, "stream_options": options}
    answer = http.post("/v1/completions", json=body)
    for count, event in enumerate(answer.text.split("\n\n")[:2], start=1):
        assert f'"prompt_tokens":2,"completion_tokens":{count},' in event


def test_the_request_id_is_taken_and_returned(http: httpx2.Client, server: LiveServer) -> None:
    answer = http.post("/v1/completions", json={"prompt": "x"}, headers={"X-Request-Id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.json()["id"] == "cmpl-mine-1"
    assert next(iter(server.engine.prompts)).startswith("cmpl-mine-1-")
    odd = http.post("/v1/completions", json={"prompt": "x"}, headers={"X-Request-Id": "x" * 500})
    assert len(odd.headers["x-request-id"]) == 32


def test_one_request_id_may_run_twice(server: LiveServer, http: httpx2.Client) -> None:
    server.engine.hold()
    with ThreadPoolExecutor(2) as pool:
        headers = {"X-Request-Id": "same"}
        both = [
            pool.submit(http.post, "/v1/completions", json={"prompt": "x"}, headers=headers) for _ in range(2)
        ]
        assert len({server.engine.admitted.get(timeout=30) for _ in both}) == 2
        server.engine.release()
        assert [answer.result(30).status_code for answer in both] == [200, 200]


def test_long_texts_are_encoded_off_the_event_loop() -> None:
    threads = []

    class RecordingTokenizer(FakeTokenizer):
        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            threads.append(threading.current_thread().name)
            return super().encode(text)

    engine = FakeEngine(max_model_len=8192)
    engine.tokenizer = RecordingTokenizer()
    with live_server(engine) as server, httpx2.Client(base_url=server.url, timeout=30, trust_env=False) as http:
        for prompt in ("x" * 5000, "x"):
            assert http.post("/v1/completions", json={"prompt": prompt, "max_tokens": 1}).status_code == 200
    assert threads[0].startswith("texts-") and not threads[1].startswith("texts-")
