"""Biases, least lengths, and log-probabilities of prompts, against transformers' own, in fp32."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from longspan import LLM, SamplingParams, StructuredOutputs
from longspan.errors import RequestError
from tests.models.tiny import CONFIGS, write_tiny_engine_model

EOS, VOCAB, TOKENS = 2, 101, 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llama")


@pytest.fixture(scope="module")
def theirs(folder: Path) -> PreTrainedModel:
    torch.set_num_threads(1)
    return write_tiny_engine_model(folder, CONFIGS["llama"])


@pytest.fixture(scope="module")
def llm(folder: Path, theirs: PreTrainedModel) -> Iterator[LLM]:
    settings = {"executor": "inproc", "dtype": "float32", "threads_per_device": 1}
    with LLM(folder, instances=2, policy="elastic_fcfs", **settings) as one:
        yield one


def their_tokens(model: PreTrainedModel, prompt: list[int], **settings: object) -> list[int]:
    """Greedy ones, up to the end or `TOKENS`."""
    ids = torch.tensor([prompt])
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=TOKENS, pad_token_id=0,
        eos_token_id=EOS, **settings,
    )  # fmt: skip
    return made[0, len(prompt) :].tolist()


prompts = st.lists(st.integers(3, VOCAB - 1), min_size=1, max_size=12)
biases = st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-30, 30, width=32), max_size=12)


@settings(max_examples=25)
@given(prompt=prompts, bias=biases)
def test_logit_bias(prompt: list[int], bias: dict[int, float], llm: LLM, theirs: PreTrainedModel) -> None:
    (ours,) = llm.generate([prompt], SamplingParams(temperature=0, max_tokens=TOKENS, logit_bias=bias))
    sequence_bias = {(token,): float(added) for token, added in bias.items()} or None
    assert list(ours.token_ids) == their_tokens(theirs, prompt, sequence_bias=sequence_bias)


@settings(max_examples=25)
@given(prompt=prompts, least=st.integers(0, TOKENS), eager=st.booleans())
def test_min_tokens(prompt: list[int], least: int, eager: bool, llm: LLM, theirs: PreTrainedModel) -> None:
    """eager: the end is what the model wants most."""
    bias = {EOS: 40.0} if eager else {}
    params = SamplingParams(temperature=0, max_tokens=TOKENS, min_tokens=least, logit_bias=bias)
    (ours,) = llm.generate([prompt], params)
    sequence_bias = {(token,): added for token, added in bias.items()} or None
    wanted = their_tokens(theirs, prompt, sequence_bias=sequence_bias, min_new_tokens=least)
    assert list(ours.token_ids) == wanted
    if eager:
        assert len(ours.token_ids) == min(least + 1, TOKENS)


def test_min_tokens_holds_for_stop_tokens_and_stop_strings(llm: LLM) -> None:
    (free,) = llm.generate([[5, 6, 7]], SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True))
    first = llm.engine.tokenizer.decode(free.token_ids[:1])
    params = SamplingParams(
        temperature=0, max_tokens=TOKENS, min_tokens=5, ignore_eos=True, stop_token_ids=(free.token_ids[0],)
    )
    (kept,) = llm.generate([[5, 6, 7]], params)
    assert free.token_ids[0] not in kept.token_ids[:5]
    strings = SamplingParams(temperature=0, max_tokens=TOKENS, min_tokens=5, ignore_eos=True, stop=(first,))
    (text,) = llm.generate([[5, 6, 7]], strings)
    assert text.token_ids[:5] == free.token_ids[:5] and text.text.startswith(first)


def test_what_a_grammar_wants_comes_before_min_tokens(llm: LLM) -> None:
    wanted = StructuredOutputs(regex="(ad|bd){2}")
    (answer,) = llm.generate([[5]], SamplingParams(max_tokens=8, min_tokens=8, structured_outputs=wanted))
    assert len(answer.text) == 4 and answer.finish_reason == "stop"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"logit_bias": {VOCAB: 1.0}}, "only those from 0 to 100"),
        ({"logit_bias": {1: 101.0}}, r"must lie in \[-100"),
        ({"logit_bias": {"a": 1.0}}, "whole number"),
        ({"logit_bias": 3}, "mapping"),
        ({"logit_bias": dict.fromkeys(range(2000), 1.0)}, "at most 1024"),
        ({"min_tokens": 5, "max_tokens": 4}, r"must lie in \[0, 4\]"),
        ({"min_tokens": 10**6}, "room for"),
        ({"prompt_logprobs": 21}, r"\[0, 20\]"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(llm: LLM, settings: dict[str, object], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        llm.generate([[5]], SamplingParams(**settings))


SHAPES = [
    {"instances": 3, "policy": "static_sp"},
    {"instances": 2, "policy": "sarathi:chunk_size=7"},
    {"instances": 1, "pp": 2, "policy": "sarathi:chunk_size=16"},
    {"instances": 1, "tp": 2},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_prompt_logprobs(shape: dict[str, object], folder: Path, theirs: PreTrainedModel) -> None:
    draw = random.Random(1)
    given = [draw.choices(range(3, VOCAB), k=length) for length in (1, 2, 40, 100)]
    params = SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=3)
    with LLM(folder, executor="inproc", dtype="float32", threads_per_device=1, **shape) as llm:
        answers = llm.generate(given, params)
    for prompt, answer in zip(given, answers, strict=True):
        with torch.inference_mode():
            theirs_TV = theirs(torch.tensor([prompt])).logits[0].log_softmax(-1)
        assert answer.prompt_logprobs is not None and answer.prompt_logprobs[0] is None
        assert len(answer.prompt_logprobs) == len(prompt)
        for place, position in enumerate(answer.prompt_logprobs[1:], start=1):
            assert position is not None and position.chosen.token_id == prompt[place]
            best = theirs_TV[place - 1].topk(3)
            assert [token.token_id for token in position.top] == best.indices.tolist()
            for token in (*position.top, position.chosen):
                assert abs(token.logprob - float(theirs_TV[place - 1, token.token_id])) < 1e-4
