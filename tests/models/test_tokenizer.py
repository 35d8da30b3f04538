"""The tokenizer wrapper on the default model, and on a folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers.decoders import DecodeStream

from longspan.engine.tokenizer import Tokenizer
from longspan.errors import ModelError, RequestError
from longspan.models.catalog import ResolvedModel

from .test_config import LLAMA

TEXTS = ["Hello world", " 12345  \n\n\tdef f(x):", "grüße 😀 日本語", "", "a<|im_end|>b"]


@pytest.fixture(scope="module")
def tokenizer(model: ResolvedModel) -> Tokenizer:
    return Tokenizer.load(model)


@pytest.mark.parametrize("text", TEXTS)
def test_there_and_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert ids == tokenizer._hf(text)["input_ids"]


def test_facts(tokenizer: Tokenizer) -> None:
    assert (tokenizer.max_token_chars, tokenizer.may_shrink) == (81, False)
    assert tokenizer.eos_token_ids == (2,)
    assert tokenizer.has_chat_template
    assert tokenizer.decode([1, 2]) == ""


def test_the_backend_streams(tokenizer: Tokenizer) -> None:
    stream = DecodeStream(skip_special_tokens=True)
    pieces = [stream.step(tokenizer.backend, token) for token in tokenizer.encode("grüße 😀")]
    assert "".join(piece or "" for piece in pieces) == "grüße 😀"


def test_chat(tokenizer: Tokenizer) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    ids = tokenizer.apply_chat_template(messages)
    assert tokenizer.decode(ids, skip_special_tokens=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids == tokenizer._hf.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=False)
    assert ids[: len(prompt)] == prompt and len(prompt) < len(ids)


@pytest.mark.parametrize(("messages", "settings", "reason"), [
    ([], {}, "no messages"),
    ([{"role": "user"}], {}, "refuses these messages"),
    ([{"role": "user", "content": "Hi"}], {"chat_template": "{{ 1 }}"}, "chat_template cannot be set"),
    ([{"role": "user", "content": "Hi"}], {"messages": []}, "refuses these messages"),
])  # fmt: skip
def test_refused_conversations(tokenizer: Tokenizer, messages: list, settings: dict, reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        tokenizer.apply_chat_template(messages, **settings)


def test_the_second_start_converts_nothing(
    model: ResolvedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path))
    first = Tokenizer.load(model)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", None)
    second = Tokenizer.load(model)
    for text in TEXTS:
        assert second.encode(text) == first.encode(text)
    messages = [{"role": "user", "content": "Hi"}]
    assert second.apply_chat_template(messages) == first.apply_chat_template(messages)
    assert second.eos_token_ids == first.eos_token_ids
    assert not list(tmp_path.rglob(".tokenizer-*"))


def test_a_folder(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = ResolvedModel(name="m", path=tmp_path, kind="hf")
    with pytest.raises(ModelError, match="no tokenizer that can be read"):
        Tokenizer.load(folder)
    tokenizer._hf.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "eos_token_id": [2, 7]}))
    plain = Tokenizer.load(folder)
    assert plain.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])
    assert plain.eos_token_ids == (2, 7)
    assert not plain.has_chat_template
    with pytest.raises(RequestError, match="no chat template"):
        plain.apply_chat_template([{"role": "user", "content": "Hi"}])


def test_importing_loads_neither_transformers_nor_torch() -> None:
    check = ("import sys, longspan.engine.tokenizer, longspan.models.catalog, longspan.models.config as c; "
             "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))")  # fmt: skip
    assert subprocess.run([sys.executable, "-c", check], timeout=60).returncode == 0


def test_half_of_a_surrogate_pair_is_the_users_mistake(model: ResolvedModel) -> None:
    with pytest.raises(RequestError, match="not valid Unicode") as refused:
        Tokenizer.load(model).encode("a\ud800b")
    assert refused.value.code == "invalid_unicode"
