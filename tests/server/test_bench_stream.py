"""What a streamed answer of /v1/completions says, in the dialects of several servers."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from longspan.entrypoints.bench.completion_stream import MAX_MESSAGE, CompletionStream, error_message


def event(**content: Any) -> str:
    return f"data: {json.dumps(content)}\n\n"


def token(text: str, reason: str | None = None) -> str:
    return event(id="x", choices=[{"index": 0, "text": text, "logprobs": None, "finish_reason": reason}], usage=None)


def usage(prompt: int, completion: int) -> str:
    return event(choices=[], usage={"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": 0})


DONE = "data: [DONE]\n\n"
ANSWER = token("Hello") + ": keep-alive\n\n" + token("") + token(" ö", "length") + usage(7, 3) + DONE


def read(*pieces: bytes, status: int = 200) -> CompletionStream:
    stream = CompletionStream()
    for number, piece in enumerate(pieces):
        stream.feed(status, piece, float(number))
    return stream


@given(st.lists(st.integers(0, len(ANSWER.encode())), max_size=10), st.sampled_from(["\n", "\r\n"]))
def test_it_does_not_matter_where_the_network_cuts(cuts: list[int], newline: str) -> None:
    body = ANSWER.replace("\n", newline).encode()
    places = [0, *sorted(cuts), len(body)]
    stream = read(*(body[a:b] for a, b in pairwise(places)))
    assert stream.complete and stream.error is None
    assert (stream.num_prompt_tokens, stream.num_output_tokens, len(stream.times)) == (7, 3, 3)
    assert list(stream.times) == sorted(stream.times)


def test_a_piece_has_the_time_when_its_line_was_complete() -> None:
    first, second = token("a").encode(), token("b").encode()
    stream = read(first[:9], first[9:] + second[:5], b"", second[5:])
    assert stream.times == [1.0, 3.0]


def test_a_last_empty_piece_is_no_token() -> None:
    pieces = [token("a"), token("b"), token("", "length")]
    with_usage = read(*(piece.encode() for piece in (*pieces, usage(5, 2), DONE)))
    assert with_usage.times == [0.0, 1.0]
    a_token_without_text = read(*(piece.encode() for piece in (*pieces, usage(5, 3), DONE)))
    assert a_token_without_text.times == [0.0, 1.0, 2.0]


def test_without_usage_pieces_are_counted() -> None:
    stream = read((token("a") + token("b", "length") + DONE).encode())
    assert (stream.num_prompt_tokens, stream.num_output_tokens) == (None, 2)


def test_an_error_inside_the_stream() -> None:
    stream = read((token("a") + event(error={"message": "worker 1\nis gone", "code": 503}) + DONE).encode())
    assert stream.error == "worker 1 is gone"
    assert read(b"data: {not json}\n\n").error is not None


def test_a_refusal_comes_in_pieces_too() -> None:
    body = b'{"error": {"message": "too long", "type": "invalid_request_error"}}'
    assert read(body[:10], body[10:], status=400).error == "too long"
    assert read(b"", status=502).error == "status 502"


def test_errors_in_other_shapes() -> None:
    assert error_message(b'{"error": "busy"}') == "busy"
    assert error_message(b'{"object": "error", "message": "no"}') == "no"
    assert error_message(b"<html>\n bad  gateway") == "<html> bad gateway"
    assert len(error_message(b"x" * 5000)) == MAX_MESSAGE
