"""Log probabilities are of tokens, known by their bytes; their places are those of the text that was sent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.engine.detokenizer import Detokenizer, OutputProcessor
from longspan.entrypoints.openai.logprobs import StreamedLogprobs, chat_logprobs, completion_logprobs, token_name
from longspan.outputs import PositionLogprobs, RequestOutput, TokenLogprob
from longspan.sampling_params import SamplingParams
from tests.engine.test_detokenizer import BYTES, EOS, VOCAB, WORDS, X, token_id_of

DETOKENIZER = Detokenizer(BYTES)


def outputs(tokens: Sequence[int], top: Sequence[int] = (), **params: Any) -> list[RequestOutput]:
    """What the engine gives back for these tokens, each with the same best ones beside it."""
    settings = SamplingParams(logprobs=len(top), max_tokens=len(tokens), **params)
    processor = OutputProcessor(DETOKENIZER, [], settings, [EOS])
    found = []
    for number, token_id in enumerate(tokens, start=1):
        delta = processor.push(token_id)
        chosen = TokenLogprob(token_id, DETOKENIZER.token_bytes(token_id), -1.0, 1)
        best = tuple(TokenLogprob(one, DETOKENIZER.token_bytes(one), -0.5, rank) for rank, one in enumerate(top, 1))
        position = PositionLogprobs(chosen, best, delta.text_offset)
        found.append(RequestOutput("r", 1, number, (token_id,), delta.text, (position,), delta.finish_reason))
        if delta.finish_reason is not None:
            break
    return found


@given(tokens=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=30), stop=st.text("abx \ufffd", max_size=3))
def test_a_stream_says_what_the_whole_answer_says(tokens: list[int], stop: str) -> None:
    given = outputs(tokens, stop=(stop,) if stop else ())
    text = "".join(output.text for output in given)
    whole = completion_logprobs([position for output in given for position in output.logprobs or ()], len(text))
    streamed = StreamedLogprobs()
    pieces = [piece for output in given if (piece := streamed.push(output)) is not None]
    assert len(pieces) <= len(given)
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [one for piece in pieces for one in getattr(piece, name)] == getattr(whole, name)
    assert len(whole.tokens) == len(given)
    assert whole.text_offset == sorted(whole.text_offset)
    assert all(0 <= offset <= len(text) for offset in whole.text_offset)


@given(st.text(min_size=1, max_size=20))
def test_the_bytes_of_an_answer_join_to_its_text(text: str) -> None:
    given = outputs(BYTES.encode(text, add_special_tokens=False).ids)
    chat = chat_logprobs([position for output in given for position in output.logprobs or ()])
    assert b"".join(bytes(token.bytes) for token in chat.content) == text.encode()
    whole = completion_logprobs([position for output in given for position in output.logprobs or ()], len(text))
    starts = [len(text.encode()[: sum(len(t.bytes) for t in chat.content[:i])].decode(errors="ignore"))
              for i in range(len(chat.content))]  # fmt: skip
    assert whole.text_offset == starts


def test_parts_of_characters_have_names_of_their_own() -> None:
    pieces = BYTES.encode("瞧漢😀").ids
    assert len(set(pieces)) > 6
    (output,) = outputs([X], top=list(dict.fromkeys(pieces)))
    found = completion_logprobs(output.logprobs or (), 1)
    assert len(found.top_logprobs[0]) == len(set(pieces)) + 1  # and the chosen one
    assert "bytes:\\xe7" in found.top_logprobs[0]
    assert token_name("瞧".encode()[:2]) == "bytes:\\xe7\\x9e"


def test_tokens_with_the_same_bytes_do_not_share_a_name() -> None:
    """A letter, and the same as a fallback byte: both are in the vocabulary."""
    words = Detokenizer(WORDS)
    letter, byte = token_id_of(WORDS, "a"), token_id_of(WORDS, "<0x61>")
    both = tuple(TokenLogprob(one, words.token_bytes(one), -float(one), 1) for one in (letter, byte))
    assert both[0].bytes == both[1].bytes == b"a"
    found = completion_logprobs([PositionLogprobs(both[1], both, 0)], 1)
    assert found.top_logprobs == [{"a": -float(letter), f"token_id:{byte}": -float(byte)}]
    assert found.tokens == [f"token_id:{byte}"]


@pytest.mark.parametrize("logprob", [float("-inf"), float("nan"), -1e300])
def test_log_probabilities_that_json_has_not(logprob: float) -> None:
    position = PositionLogprobs(TokenLogprob(X, b"x", logprob, 1), (TokenLogprob(X, b"x", logprob, 1),), 0)
    for answer in (completion_logprobs([position], 1), chat_logprobs([position])):
        assert "-9999.0" in msgspec.json.encode(answer).decode()
        json.loads(msgspec.json.encode(answer), parse_constant=lambda word: pytest.fail(word))
