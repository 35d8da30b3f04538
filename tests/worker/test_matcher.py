"""Which tokens a grammar allows: of the real tokenizer's tokens, and whatever a matcher has been through before."""

from __future__ import annotations

import json
import random
import re
from datetime import date

import jsonschema_rs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from longspan.engine.tokenizer import Tokenizer
from longspan.worker.grammar_process import place_of, try_out
from longspan.worker.matcher import GrammarError, Matcher, Vocabulary, translate

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "inhabitants": {"type": "integer", "minimum": 0},
                   "tags": {"type": "array", "items": {"enum": ["big", "old", "wet"]}, "maxItems": 3}},
    "required": ["city", "inhabitants", "tags"],
    "additionalProperties": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(model) -> Tokenizer:
    return Tokenizer.load(model)


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    backend = tokenizer.backend
    return Vocabulary(backend.to_str(), tokenizer.eos_token_ids, backend.get_vocab_size() + 64)


def matcher_of(vocabulary: Vocabulary, kind: str, text: str) -> Matcher:
    return vocabulary.matcher(translate(kind, text))


def walk(matcher: Matcher, vocabulary: Vocabulary, rng: random.Random, most: int = 200) -> list[int]:
    """Tokens up to the end of a complete output, each drawn from those that are allowed."""
    tokens: list[int] = []
    while len(tokens) < most:
        allowed = np.flatnonzero(matcher.allowed()).tolist()
        tokens.append(rng.choice(allowed))
        matcher.append(tokens[-1])
        if tokens[-1] in vocabulary.eos_token_ids:
            break
    return tokens


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32))
def test_what_is_allowed_makes_valid_outputs(seed: int, vocabulary: Vocabulary, tokenizer: Tokenizer) -> None:
    tokens = walk(matcher_of(vocabulary, "json", json.dumps(SCHEMA)), vocabulary, random.Random(seed))
    if tokens[-1] in vocabulary.eos_token_ids:
        jsonschema_rs.validate(SCHEMA, json.loads(tokenizer.decode(tokens)))


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32))
def test_a_matcher_follows_from_its_tokens(seed: int, vocabulary: Vocabulary) -> None:
    """One that is made anew, from the tokens so far, allows the same as one that was asked at each of them."""
    grammar = translate("json", json.dumps(SCHEMA))
    tokens = walk(vocabulary.matcher(grammar), vocabulary, random.Random(seed), most=30)
    asked = vocabulary.matcher(grammar)
    for number in range(len(tokens)):
        assert np.array_equal(asked.allowed(), vocabulary.matcher(grammar, tokens[:number]).allowed())
        asked.append(tokens[number])


def test_texts_of_a_schema_are_allowed_as_they_are_tokenised(vocabulary: Vocabulary, tokenizer: Tokenizer) -> None:
    for indent in (None, 2, 4):
        matcher = matcher_of(vocabulary, "json", json.dumps(SCHEMA))
        text = json.dumps({"city": "Tromsø", "inhabitants": 77992, "tags": ["wet", "old"]}, indent=indent,
                          ensure_ascii=False)  # fmt: skip
        for token in tokenizer.encode(text):
            assert matcher.allowed()[token]
            matcher.append(token)
        assert matcher.allowed()[tokenizer.eos_token_ids[0]]


@pytest.mark.parametrize(
    ("kind", "text", "pattern"),
    [
        ("regex", r"(Paris|London), [0-9]{4}", r"(Paris|London), [0-9]{4}"),
        ("choice", '["positive", "neg\\"ative"]', r'positive|neg"ative'),
        ("grammar", 'start: "yes" | "no" WS "way"\nWS: / {1,3}/\n', r"yes|no {1,3}way"),
        ("grammar", 'root ::= "a" ("b" | "c")? "."', r"a[bc]?\."),
    ],
)  # fmt: skip
def test_other_grammars(kind: str, text: str, pattern: str, vocabulary: Vocabulary, tokenizer: Tokenizer) -> None:
    for seed in range(10):
        tokens = walk(matcher_of(vocabulary, kind, text), vocabulary, random.Random(seed))
        assert tokens[-1] in vocabulary.eos_token_ids
        assert re.fullmatch(pattern, tokenizer.decode(tokens))


@pytest.mark.parametrize("grammar", [("json", json.dumps(SCHEMA)), ("choice", '["yes", "no"]'), ("regex", "[a-c]{3}"),
                                     ("grammar", 'start: "a" X\nX: /[0-9]/')])  # fmt: skip
def test_what_comes_before_an_answer_is_free(
    grammar: tuple[str, str], vocabulary: Vocabulary, tokenizer: Tokenizer
) -> None:
    """Up to the first end of the thoughts; then the grammar holds."""
    kind, text = grammar
    alone = vocabulary.matcher(try_out(vocabulary, kind, text))
    matcher = vocabulary.matcher(try_out(vocabulary, kind, text, "</think>"))
    for token in tokenizer.encode('Well, {"a": 1} <think> or </thin '):
        assert matcher.allowed()[token]
        matcher.append(token)
    assert matcher.allowed()[: tokenizer.backend.get_vocab_size()].mean() > 0.9
    assert not matcher.allowed()[[*vocabulary.eos_token_ids]].any()
    for token in tokenizer.encode("k>\n</think>"):
        assert matcher.allowed()[token]
        matcher.append(token)
    assert not (alone.allowed() & ~matcher.allowed()).any()
    tokens = walk(matcher, vocabulary, random.Random(1), 400)
    assert tokens[-1] in vocabulary.eos_token_ids
    said = tokenizer.decode(tokens).strip()
    assert {"json": lambda: jsonschema_rs.is_valid(SCHEMA, json.loads(said)), "choice": lambda: said in ("yes", "no"),
            "regex": lambda: re.fullmatch("[a-c]{3}", said), "grammar": lambda: re.fullmatch("a[0-9]", said)}[kind]()


def test_thoughts_that_a_special_token_ends(tokenizer: Tokenizer) -> None:
    backend = Backend.from_str(tokenizer.backend.to_str())
    backend.add_special_tokens([AddedToken("</think>", special=True)])
    vocabulary = Vocabulary(backend.to_str(), tokenizer.eos_token_ids, backend.get_vocab_size())
    matcher = vocabulary.matcher(try_out(vocabulary, "choice", '["yes"]', "</think>"))
    for token in backend.encode("hm\n</think>\nyes").ids:
        assert matcher.allowed()[token]
        matcher.append(token)
    assert np.flatnonzero(matcher.allowed()).tolist() == sorted(tokenizer.eos_token_ids)


def test_a_format_that_nobody_knows_says_nothing(vocabulary: Vocabulary, tokenizer: Tokenizer) -> None:
    """One that is known is kept to; what is no schema stays as it is."""
    given = {"format": {"type": "string", "format": "cuid", "maxLength": 3},
             "at": {"type": "string", "format": "date"}, "is": {"const": {"format": "x"}}}  # fmt: skip
    schema = {"type": "object", "properties": given,
              "required": ["format", "at", "is"], "additionalProperties": False}  # fmt: skip
    matcher = vocabulary.matcher(try_out(vocabulary, "json", json.dumps(schema)))
    found = json.loads(tokenizer.decode(walk(matcher, vocabulary, random.Random(2), 400)))
    assert len(found["format"]) <= 3 and found["is"] == {"format": "x"} and date.fromisoformat(found["at"])


def test_behind_the_end_there_is_nothing_else(vocabulary: Vocabulary, tokenizer: Tokenizer) -> None:
    matcher = matcher_of(vocabulary, "choice", '["yes"]')
    end = tokenizer.eos_token_ids[0]
    for token in [*tokenizer.encode("yes"), end, end]:
        matcher.append(token)
        assert matcher.allowed().any()
    assert np.flatnonzero(matcher.allowed()).tolist() == [end]


def test_ids_that_no_token_has_are_not_allowed(vocabulary: Vocabulary) -> None:
    allowed = matcher_of(vocabulary, "json_object", '{"type":"object"}').allowed()
    assert len(allowed) == vocabulary.num_rows and not allowed[-64:].any()


def test_a_token_that_is_not_allowed_is_told(vocabulary: Vocabulary, tokenizer: Tokenizer) -> None:
    matcher = matcher_of(vocabulary, "choice", '["yes"]')
    matcher.append(tokenizer.encode("no")[0])
    with pytest.raises(GrammarError):
        matcher.allowed()



@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("json", '{"type":"object","properties":{"a":{"not":{}}}}', "not"),
        ("json", '{"type":"object","properties":{"a":{"type":"strin"}}}', "strin"),
        ("json", '{"$ref":"#"}', "nothing matches"),
        ("json", "{", "EOF"),
        ("regex", "(a|", "unclosed"),
        ("grammar", "start: x", "unknown name"),
        ("grammar", 'start: s\ns: s s | "a" | "b"\n', "Too many items"),
        ("json", json.dumps({"anyOf": [{"properties": {f"k{i}": {"const": i}, "v": {"type": "number"}}}
                                       for i in range(1000)]}), "too much|Too many"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_told(kind: str, text: str, said: str, vocabulary: Vocabulary) -> None:
    with pytest.raises(GrammarError, match=said):
        try_out(vocabulary, kind, text)


def test_recursive_and_nested_schemas_can_be_used(vocabulary: Vocabulary) -> None:
    tree = {"$ref": "#/$defs/n", "$defs": {"n": {"type": "object", "properties": {
        "children": {"type": "array", "items": {"$ref": "#/$defs/n"}}, "name": {"type": "string"}}}}}  # fmt: skip
    nested: dict[str, object] = {"type": "string"}
    for _ in range(25):
        nested = {"type": "object", "properties": {"a": nested}, "required": ["a"], "additionalProperties": False}
    for schema in (tree, nested, {"enum": [f"word {i}" for i in range(2000)]}, {"type": "string", "maxLength": 10**6}):
        try_out(vocabulary, "json", json.dumps(schema))


def test_the_place_in_a_schema() -> None:
    schema = '{"properties": {"a/b": {"items": [{}, {"not": {}}]}, "c": {"type": "strin"}}}'
    assert place_of(schema, 'Unimplemented keys: ["not"]') == "/properties/a~1b/items/1/not"
    assert place_of(schema, "Invalid type: strin") == "/properties/c/type"
    assert place_of(schema, "something else") is None
