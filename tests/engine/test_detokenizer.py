"""Incremental text: joined it is the text of all tokens; characters are whole; stop strings never leak."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from longspan.engine.detokenizer import Detokenizer, OutputProcessor, TextStream
from longspan.engine.stop_strings import StopScanner, stop_strings
from longspan.sampling_params import SamplingParams

BROKEN = "�"
CORPUS = ["the quick brown fox jumps over the lazy dog", "你好世界\n长上下文 😀👍🏽 e\u0301 naïve"] * 20


def byte_level() -> Tokenizer:
    """Like GPT-2's, Llama 3's, Qwen's: tokens are pieces of UTF-8."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def sentencepiece_like() -> Tokenizer:
    """Like Llama 2's: words carry their space, other characters fall back to bytes."""
    words = ["▁", "a", "b", "▁a", "▁hello", "▁world"]
    tokens = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    merges = [("▁", "a")]
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    replace, strip = decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([replace, decoders.ByteFallback(), decoders.Fuse(), strip])
    tokenizer.add_special_tokens([AddedToken("<unk>", special=True), AddedToken("<s>", special=True)])
    return tokenizer


def token_id_of(tokenizer: Tokenizer, token: str) -> int:
    token_id = tokenizer.token_to_id(token)
    assert token_id is not None
    return token_id


BYTES, WORDS = byte_level(), sentencepiece_like()
VOCAB = BYTES.get_vocab_size()
EOS, X = token_id_of(BYTES, "</s>"), token_id_of(BYTES, "x")
HELLO, WORLD, BOS = (token_id_of(WORDS, token) for token in ("▁hello", "▁world", "<s>"))
# A prompt whose last token is the first byte (of three) of a character.
PARTIAL = BYTES.encode("ok ").ids + BYTES.encode("瞧").ids[:1]
ids = st.lists(st.integers(0, VOCAB - 1), max_size=40)


def pieces(tokenizer: Tokenizer, prompt: Sequence[int], output: Sequence[int]) -> list[str]:
    stream = TextStream(Detokenizer(tokenizer), prompt)
    return [*(stream.push(token_id) for token_id in output), stream.flush()]


def joined(tokenizer: Tokenizer, prompt: Sequence[int], output: Sequence[int]) -> str:
    return "".join(pieces(tokenizer, prompt, output))


@settings(max_examples=300)
@given(output=ids)
def test_pieces_join_to_the_text_of_all_tokens(output: list[int]) -> None:
    assert joined(BYTES, [], output) == BYTES.decode(output)


@settings(max_examples=300)
@given(prompt=ids, output=ids)
def test_output_is_what_the_tokens_add_to_the_prompt(prompt: list[int], output: list[int]) -> None:
    before, after = BYTES.decode(prompt), BYTES.decode(prompt + output)
    shared = next((i for i, pair in enumerate(zip(before, after, strict=False)) if len(set(pair)) == 2), None)
    assert joined(BYTES, prompt, output) == after[len(before) if shared is None else shared :]


@given(prompt=st.text(max_size=20), text=st.text(max_size=40))
@pytest.mark.parametrize("tokenizer", [BYTES, WORDS], ids=["byte-level", "sentencepiece-like"])
def test_good_text_comes_back_in_whole_characters(tokenizer: Tokenizer, prompt: str, text: str) -> None:
    prompt, text = (value.replace(BROKEN, "").replace("▁", "") for value in (prompt, text))
    all_ids = tokenizer.encode(prompt + text).ids
    # Any cut of the tokens between two characters may be the end of the prompt.
    before = [tokenizer.decode(all_ids[:cut]) for cut in range(len(all_ids) + 1)]
    for cut in (cut for cut, start in enumerate(before) if (prompt + text).startswith(start)):
        got = pieces(tokenizer, all_ids[:cut], all_ids[cut:])
        assert "".join(got) == (prompt + text)[len(before[cut]) :]
        assert BROKEN not in "".join(got)


def test_leading_space_survives_the_join_with_the_prompt() -> None:
    assert pieces(WORDS, [HELLO], [WORLD]) == [" world", ""]
    assert pieces(WORDS, [], [HELLO, WORLD]) == ["hello", " world", ""]
    assert pieces(WORDS, [HELLO, BOS, BOS], [BOS, WORLD]) == ["", " world", ""]
    long_run = WORDS.encode("瞧" * 30).ids  # all bytes: the context must start at a character
    assert joined(WORDS, long_run, [*WORDS.encode("瞧").ids[1:], WORLD]) == "瞧 world"


def test_prompt_that_ends_inside_a_character() -> None:
    rest = BYTES.encode("瞧").ids[1:]
    assert joined(BYTES, PARTIAL, [*rest, X]) == "瞧x"
    assert joined(BYTES, PARTIAL, [X]) == "x"
    assert joined(BYTES, PARTIAL, []) == ""


class CountingDetokenizer(Detokenizer):
    """Knows the most tokens that were ever decoded at once."""

    longest = 0

    def decode(self, token_ids: Sequence[int]) -> str:
        self.longest = max(self.longest, len(token_ids))
        return super().decode(token_ids)


@pytest.mark.parametrize("token_id", [EOS, PARTIAL[-1], X, VOCAB + 7])
def test_work_per_token_does_not_grow(token_id: int) -> None:
    detokenizer = CountingDetokenizer(BYTES)
    stream = TextStream(detokenizer, [X] * 5000)
    text = "".join(stream.push(token_id) for _ in range(500)) + stream.flush()
    assert text == BYTES.decode([token_id] * 500)
    assert detokenizer.longest <= 15


@given(text=st.text(max_size=40))
def test_the_bytes_of_a_texts_tokens_are_the_texts(text: str) -> None:
    detokenizer = Detokenizer(BYTES)
    tokens = BYTES.encode(text, add_special_tokens=False).ids
    assert b"".join(detokenizer.token_bytes(token_id) for token_id in tokens) == text.encode()


def test_bytes_of_single_tokens() -> None:
    detokenizer = Detokenizer(BYTES)
    assert detokenizer.token_bytes(PARTIAL[-1]) == "瞧".encode()[:1]
    assert detokenizer.token_bytes(EOS) == b"</s>"
    assert detokenizer.token_bytes(VOCAB + 7) == b""
    words = Detokenizer(WORDS)
    assert words.token_bytes(WORLD) == b" world"
    assert words.token_bytes(token_id_of(WORDS, "<0xE7>")) == b"\xe7"
    assert words.token_bytes(BOS) == b"<s>"


def test_bytes_by_a_decoder_of_another_kind() -> None:
    """Word pieces, as BERT has them: what a token adds to a text, by the decoder's own word."""
    tokens = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "play": 2, "##ing": 3}, unk_token="[UNK]"))
    tokens.decoder = decoders.WordPiece()
    detokenizer = Detokenizer(tokens)
    assert [detokenizer.token_bytes(token_id) for token_id in (2, 3, 9)] == [b" play", b"ing", b""]


def test_offsets_count_characters_that_were_sent() -> None:
    """Tokens of one character begin where it does; what comes after it is not shifted by its pieces."""
    params = SamplingParams(logprobs=0, max_tokens=20)
    processor = OutputProcessor(Detokenizer(BYTES), [], params, [EOS])
    pieces = BYTES.encode("瞧").ids
    assert len(pieces) == 3
    deltas = [processor.push(token_id) for token_id in [X, *pieces, X, *pieces, X]]
    assert [delta.text_offset for delta in deltas] == [0, 1, 1, 1, 2, 3, 3, 3, 4]
    assert "".join(delta.text for delta in deltas) == "x瞧x瞧x"


def first_stop(text: str, stops: Sequence[str]) -> tuple[int, str] | None:
    """(end, stop string) of the one complete first; the longest of those with this end. The plain twin."""
    for end in range(1, len(text) + 1):
        if found := [stop for stop in stops if text[:end].endswith(stop)]:
            return end, max(found, key=len)
    return None


def could_begin(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` that begins a stop string."""
    return max((n for stop in stops for n in range(len(stop)) if text.endswith(stop[:n])), default=0)


few_letters = st.text("abc", min_size=1, max_size=5)


@settings(max_examples=500)
@given(
    text=st.text("abcd", max_size=30),
    stops=st.lists(few_letters, max_size=4),
    cuts=st.lists(st.integers(0, 30)),
    include=st.booleans(),
)
def test_stop_strings(text: str, stops: list[str], cuts: list[int], include: bool) -> None:
    scanner = StopScanner(stops, include=include)
    shown, read = "", ""
    expected = first_stop(text, stops)
    borders = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    for start, end in pairwise(borders):
        read += text[start:end]
        piece, stop = scanner.push(text[start:end])
        shown += piece
        if stop is not None:
            assert expected == (len(shown) if include else len(shown) + len(stop), stop)
            assert text.startswith(shown)
            assert include or not any(other in shown for other in stops)
            return
        assert shown == read[: len(read) - could_begin(read, stops)]  # no more and no less is held back
    assert expected is None
    assert shown + scanner.flush() == text


def test_choices_share_their_stop_strings() -> None:
    stops = ("END", "\n\n")
    assert stop_strings(stops) is stop_strings(("END", "\n\n"))


@pytest.mark.parametrize("stop", ["ab" * 2000, "a" * 4000 + "b", "".join(map(str, range(1000)))])
def test_a_long_stop_string_is_found_at_once_whatever_came_before(stop: str) -> None:
    """The work for it is done as far as text matches it: nothing at the start, and no more than the text's length."""
    scanner = StopScanner([stop])
    text = stop[:-1] + stop[:-1] + stop
    shown, found = "", None
    for start in range(0, len(text), 7):
        piece, found = scanner.push(text[start : start + 7])
        shown += piece
        if found is not None:
            break
    assert (shown, found) == (text[: text.index(stop)], stop)


Ending = tuple[str, str | None, str | int | None, int]  # text, finish reason, stop reason, tokens taken


def run(params: SamplingParams, output: Sequence[int], prompt: Sequence[int] = ()) -> Ending:
    processor = OutputProcessor(Detokenizer(BYTES), prompt, params, [EOS])
    text = ""
    for token_id in output:
        delta = processor.push(token_id)
        text += delta.text
        if delta.finish_reason is not None:
            with pytest.raises(AssertionError):
                processor.push(token_id)
            return text, delta.finish_reason, delta.stop_reason, processor.num_tokens
    return text, None, None, processor.num_tokens


FOX = BYTES.encode("the quick brown fox").ids


@pytest.mark.parametrize(
    ("params", "output", "expected"),
    [
        ({}, [*FOX, EOS], ("the quick brown fox", "stop", None, len(FOX) + 1)),
        ({"ignore_eos": True, "max_tokens": 3}, [X, EOS, X], ("xx", "length", None, 3)),
        ({"stop_token_ids": (X,)}, [*FOX, X], ("the quick brown fox", "stop", X, len(FOX) + 1)),
        ({"stop_token_ids": (EOS,)}, [EOS], ("", "stop", None, 1)),
        ({"stop_token_ids": (EOS,), "ignore_eos": True}, [EOS], ("", "stop", EOS, 1)),
        ({"max_tokens": 2}, [X, X], ("xx", "length", None, 2)),
        ({"max_tokens": 2}, [X, EOS], ("x", "stop", None, 2)),
        ({"max_tokens": 2, "stop": ("xx",)}, [X, X], ("", "stop", "xx", 2)),
        ({"max_tokens": 2, "stop": ("xxx",)}, [X, X], ("xx", "length", None, 2)),
        ({"stop": ("xxx",)}, [X, X, EOS], ("xx", "stop", None, 3)),
        ({"max_tokens": 1}, PARTIAL[-1:], (BROKEN, "length", None, 1)),
        ({"stop": (BROKEN,)}, [X, PARTIAL[-1], EOS], ("x", "stop", BROKEN, 3)),
        ({}, [X], ("x", None, None, 1)),
    ],
)
def test_how_an_output_ends(params: dict[str, Any], output: list[int], expected: Ending) -> None:
    assert run(SamplingParams(**params), output) == expected


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("stop", ["k br", "own", "fox", "the", " quick brown"])
def test_stop_string_across_tokens(stop: str, include: bool) -> None:
    params = SamplingParams(stop=("zz", stop), include_stop_str_in_output=include)
    text, reason, cause, taken = run(params, FOX)
    end = "the quick brown fox".index(stop) + (len(stop) if include else 0)
    assert (text, reason, cause) == ("the quick brown fox"[:end], "stop", stop)
    assert stop in BYTES.decode(FOX[:taken])
    assert stop not in BYTES.decode(FOX[: taken - 1])


def test_stop_string_in_the_prompt_does_not_count() -> None:
    half, other = BYTES.encode("st").ids, BYTES.encode("op").ids
    assert run(SamplingParams(stop=("stop",)), [*other, EOS], prompt=half)[:3] == ("op", "stop", None)


@settings(max_examples=200)
@given(output=ids, stop=st.text("abx �", min_size=1, max_size=3))
def test_any_tokens_with_a_stop_string(output: list[int], stop: str) -> None:
    output = [token_id for token_id in output if token_id != EOS]
    text = BYTES.decode(output)
    got, reason, cause, _ = run(SamplingParams(stop=(stop,)), [*output, EOS])
    assert (got, reason) == (text.split(stop)[0], "stop")
    assert cause == (stop if stop in text else None)
