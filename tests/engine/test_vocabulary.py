"""The vocabulary is the model's rows, whatever the tokenizer counts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend

from longspan import LLM, SamplingParams
from longspan.errors import RequestError
from tests.models.tiny import write_random_model
from tests.models.tokenizers_zoo import byte_level, llama2

FEW = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)


def start(folder: Path, **settings) -> LLM:
    return LLM(str(folder), executor="inproc", dtype="float32", kv_tokens=200, threads_per_device=1, **settings)


@pytest.fixture(scope="module")
def too_small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """The tokenizer knows one token more than the model has rows."""
    backend = byte_level()
    rows = backend.get_vocab_size()
    backend.add_special_tokens(["<extra>"])
    assert backend.token_to_id("<extra>") == rows
    with start(write_random_model(tmp_path_factory.mktemp("small"), backend, rows), instances=2, tp=2) as llm:
        yield llm


@pytest.fixture(scope="module")
def with_holes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """The tokenizer's ids go beyond their number: every other one is free. The model has yet more rows."""
    stored = json.loads(llama2().to_str())
    vocabulary = stored["model"]["vocab"]
    stored["model"]["vocab"] = {token: number if number < 3 else 2 * number for token, number in vocabulary.items()}
    backend = Backend.from_str(json.dumps(stored))
    assert backend.get_vocab_size() < max(backend.get_vocab().values())
    with start(write_random_model(tmp_path_factory.mktemp("holes"), backend, 640)) as llm:
        yield llm


def test_text_with_a_token_that_the_model_lacks_is_refused_by_name(too_small: LLM) -> None:
    rows = too_small.engine.vocab_size
    with pytest.raises(RequestError, match=rf"token id {rows} \('<extra>'\), but the model knows .* 0 to {rows - 1}"):
        too_small.generate("the fox <extra> runs", FEW)
    assert len(too_small.generate("the fox runs", FEW)[0].token_ids) == 4, "and the next one is served"


def test_the_last_row_is_served_on_all_ranks(too_small: LLM) -> None:
    assert len(too_small.generate([too_small.engine.vocab_size - 1, 0], FEW)[0].token_ids) == 4


def test_text_with_ids_beyond_the_tokenizers_count_is_served(with_holes: LLM) -> None:
    ids = with_holes.engine.tokenizer.encode("ther")
    assert max(ids) > with_holes.engine.tokenizer.backend.get_vocab_size()
    (answer,) = with_holes.generate("ther", FEW)
    assert answer.prompt_token_ids == tuple(ids) and len(answer.token_ids) == 4


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_rows_without_a_token_may_be_given_and_give_no_text(with_holes: LLM, penalty: float) -> None:
    """Rows that pad an embedding, and holes: ids that the tokenizer cannot name."""
    params = SamplingParams(temperature=0.0, max_tokens=30, repetition_penalty=penalty, ignore_eos=True)
    (answer,) = with_holes.generate([639, 638, 7], params)
    tokenizer = with_holes.engine.tokenizer
    assert any(tokenizer.token(token) is None for token in answer.token_ids), "a random model samples them too"
    assert answer.text == tokenizer.decode([token for token in answer.token_ids if tokenizer.token(token)])


def test_ends_of_generation_beyond_the_rows_never_come(with_holes: LLM) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=4, stop_token_ids=(640, 10**9))
    assert with_holes.generate([5, 6], params)[0].finish_reason in ("length", "stop")


def test_ids_may_come_as_an_array(with_holes: LLM) -> None:
    engine = with_holes.engine
    for kind in ("<i4", "<i8", "<u2"):
        assert engine.validate(np.array([5, 639], kind), FEW).max_tokens == 4
        with pytest.raises(RequestError, match="token id 640"):
            engine.validate(np.array([5, 640], kind), FEW)
    with pytest.raises(RequestError, match="no whole numbers"):
        engine.validate(np.array([5.0]), FEW)
