"""Every kind of tokenizer gives what transformers' call gives, whatever its tokenizer.json asks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from longspan.engine.tokenizer import Tokenizer
from longspan.errors import ModelError, RequestError
from longspan.models.catalog import ResolvedModel

from .test_config import LLAMA
from .tokenizers_zoo import ZOO, byte_level, llama2, save

TEXTS = [
    "", " ", "The quick brown fox", "the  spaces\n\tand <s>names</s> inside", "<s>begun already", "a <|cut|> b",
    "Grüße 日本語 😀 cafe\u0301 \u1f00\u0342\u0345", "don't stop . Now , do !", "x" * 700,
    "\x00\x04 control", "e\u0301" * 90,
]  # fmt: skip
LENGTH = 8
"""What the truncation and the padding of these tokenizer.json ask for."""


def folder_of(path: Path) -> ResolvedModel:
    (path / "config.json").write_text(json.dumps(LLAMA))
    return ResolvedModel(name="m", path=path, kind="hf")


@pytest.fixture(scope="module", params=ZOO)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    """Ours and transformers', of a tokenizer.json that asks to cut and to fill."""
    backend = ZOO[request.param]()
    backend.enable_truncation(LENGTH)
    backend.enable_padding(length=LENGTH, pad_token="</s>", pad_id=1)
    path = save(backend, tmp_path_factory.mktemp(request.param), clean_up_tokenization_spaces=True, model_max_length=16)
    stored = json.loads((path / "tokenizer.json").read_text())
    assert stored["truncation"]["max_length"] == LENGTH and stored["padding"]["strategy"] == {"Fixed": LENGTH}
    return Tokenizer.load(folder_of(path)), AutoTokenizer.from_pretrained(path)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("special", [True, False])
def test_ids_and_text_are_those_of_transformers(pair: tuple[Tokenizer, Any], text: str, special: bool) -> None:
    ours, theirs = pair
    ids = ours.encode(text, special)
    assert ids == theirs(text, add_special_tokens=special)["input_ids"]
    for skip in (True, False):
        expected = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        assert ours.decode(ids, skip) == expected


@settings(max_examples=60)
@given(text=st.text(max_size=60) | st.text(" \u0301\u0345e<s>|cut\x85", max_size=60))
@example(text="\u1f00\u0342\u0345" * 30)
@example(text="<|cut|>" + " " * 100)
def test_the_bound_on_characters_holds(pair: tuple[Tokenizer, Any], text: str) -> None:
    ours, _ = pair
    if not ours.may_shrink and not any(char < " " or char == "\x7f" for char in text):
        assert len(text) <= ours.max_token_chars * len(ours.encode(text, add_special_tokens=False))


def test_which_tokenizers_may_shrink_a_text(tmp_path: Path) -> None:
    found = {}
    for name, make in ZOO.items():
        tokenizer = Tokenizer.load(folder_of(save(make(), tmp_path / name)))
        found[name] = (tokenizer.may_shrink, tokenizer.max_token_chars)
    assert {name for name, (may_shrink, _) in found.items() if may_shrink} == {"word_pieces", "stripping", "squeezing"}
    assert found["composing"][1] == 4 * found["byte_level"][1], "four characters may become one"
    assert found["byte_level"][1] == max(map(len, byte_level().get_vocab()))


def test_unknown_characters_may_vanish_or_run_together(tmp_path: Path) -> None:
    """Without all bytes a character may be dropped, or many be one unknown token: no bound follows."""
    for fuse, may_shrink in ((True, True), (False, False)):
        stored = json.loads(llama2().to_str())
        stored["model"]["byte_fallback"], stored["model"]["fuse_unk"] = False, fuse
        path = save(llama2().from_str(json.dumps(stored)), tmp_path / str(fuse))
        tokenizer = Tokenizer.load(folder_of(path))
        assert tokenizer.may_shrink is may_shrink
        assert len(tokenizer.encode("日" * 50, add_special_tokens=False)) == (2 if fuse else 51)


def test_special_tokens_are_split_where_the_tokenizer_says_so(tmp_path: Path) -> None:
    path = save(byte_level(), tmp_path, split_special_tokens=True)
    ours, theirs = Tokenizer.load(folder_of(path)), AutoTokenizer.from_pretrained(path)
    ids = ours.encode("a</s>b")
    assert ids == theirs("a</s>b")["input_ids"] and len(ids) > 4


def test_a_conversation_begins_once(tmp_path: Path) -> None:
    """The template writes the first token itself; the tokenizer, which adds it to plain text, does not again."""
    path = save(byte_level(), tmp_path, bos_token="<s>", chat_template="{{ bos_token }}{{ messages[0].content }}")
    ours, theirs = Tokenizer.load(folder_of(path)), AutoTokenizer.from_pretrained(path)
    ids = ours.apply_chat_template([{"role": "user", "content": "the fox"}])
    assert ids == theirs.apply_chat_template([{"role": "user", "content": "the fox"}], return_dict=False)
    assert ids.count(0) == 1 and ids == ours.encode("the fox")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model": {"type": "BPE"}}', "\udcff", '{"model": null}'])
def test_a_damaged_tokenizer_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    save(byte_level(), tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelError, match=r"has no tokenizer that can be read .*fetch them again") as caught:
        Tokenizer.load(folder_of(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_broken_chat_template_is_told_at_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Plain prompts are served all the same."""
    good = save(byte_level(), tmp_path / "good", chat_template="{% generation %}{{ messages }}{% endgeneration %}")
    Tokenizer.load(folder_of(good))
    assert not caplog.records, "transformers' own tags are known"
    tokenizer = Tokenizer.load(folder_of(save(byte_level(), tmp_path / "bad", chat_template="{{ x }}\n{% for %}")))
    assert "bad: the chat template is broken in line 2" in caplog.text
    assert tokenizer.encode("the fox")
    with pytest.raises(RequestError, match="chat template refuses these messages: TemplateSyntaxError"):
        tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}])


def test_code_in_a_folder_is_never_run(tmp_path: Path) -> None:
    save(byte_level(), tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= {"auto_map": {"AutoTokenizer": [None, "evil.Evil"]}, "tokenizer_class": "Evil"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("raise SystemExit('run')")
    with pytest.raises(ModelError, match="contains custom code"):
        Tokenizer.load(folder_of(tmp_path))
