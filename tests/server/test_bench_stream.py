"""What a streamed answer of /v1/completions says, in the dialects of several servers."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
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
    stream.end(float(len(pieces)))
    return stream


@given(st.lists(st.integers(0, len(ANSWER.encode())), max_size=10), st.sampled_from(["\n", "\r\n", "\r"]))
def test_it_does_not_matter_where_the_network_cuts(cuts: list[int], newline: str) -> None:
    body = ANSWER.replace("\n", newline).encode()
    places = [0, *sorted(cuts), len(body)]
    stream = read(*(body[a:b] for a, b in pairwise(places)))
    assert stream.complete and stream.error is None
    assert (stream.num_prompt_tokens, stream.num_output_tokens, len(stream.times)) == (7, 3, 3)
    assert list(stream.times) == sorted(stream.times)


def test_a_piece_has_the_time_when_its_line_was_complete() -> None:
    """Not when the empty line came behind it."""
    first, second = token("a").encode(), token("b").encode()
    stream = read(first[:9], first[9:-1], first[-1:] + second[:5], b"", second[5:])
    assert stream.times == [1.0, 4.0]


def test_a_last_empty_piece_is_no_token() -> None:
    pieces = [token("a"), token("b"), token("", "length")]
    with_usage = read(*(piece.encode() for piece in (*pieces, usage(5, 2), DONE)))
    assert with_usage.times == [0.0, 1.0]
    a_token_without_text = read(*(piece.encode() for piece in (*pieces, usage(5, 3), DONE)))
    assert a_token_without_text.times == [0.0, 1.0, 2.0]


def test_without_usage_pieces_are_counted() -> None:
    stream = read((token("a") + token("b", "length") + DONE).encode())
    assert (stream.num_prompt_tokens, stream.num_output_tokens) == (None, 2)


def at(*pieces: str) -> CompletionStream:
    """One piece a second, from second 0 on."""
    return read(*(piece.encode() for piece in pieces))


ROLE = event(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])


@pytest.mark.parametrize(
    ("pieces", "times", "count"),
    [
        # A leading piece without text: nothing was computed yet, whatever else is in it.
        ((token(""), token("a"), token("b", "length"), usage(5, 2), DONE), [1, 2], 2),
        ((token(""), token("a"), token("b", "length"), DONE), [1, 2], 2),
        ((token(""), token(""), token("a"), token(""), token("", "stop"), usage(5, 2), DONE), [2, 3], 2),
        ((event(choices=[{"index": 0, "text": None}]), token("a", "length"), usage(5, 1), DONE), [1], 1),
        ((ROLE, ROLE.replace('"content": ""', '"content": "a"'), usage(5, 1), DONE), [1], 1),
        ((event(choices=[], usage=None), event(object="x"), token("a", "stop"), DONE), [2], 1),
        ((usage(5, 0), token("a"), usage(5, 1), token("b", "stop"), usage(5, 2), DONE), [1, 3], 2),
        # Several tokens in a piece: as many as the server says, at the times of the pieces.
        ((token(""), token("abc"), token("de", "length"), usage(5, 5), DONE), [1, 2], 5),
        # Pieces smaller than tokens.
        ((token("a"), token("b"), token("c"), token("", "length"), usage(5, 2), DONE), [0, 1, 2], 2),
        # Empty pieces to keep the connection alive; a token without text, where the number has room for it.
        ((token("a"), token(""), token("b"), token("", "length"), usage(5, 2), DONE), [0, 2], 2),
        ((token("a"), token(""), token("b", "length"), usage(5, 3), DONE), [0, 1, 2], 3),
        # No text at all, though tokens were made.
        ((token(""), token("", "length"), usage(5, 2), DONE), [0, 1], 2),
        ((token("", "length"), usage(5, 1), DONE), [0], 1),
    ],
)  # fmt: skip
def test_when_output_came_in_the_habits_of_other_servers(
    pieces: tuple[str, ...], times: list[float], count: int
) -> None:
    stream = at(*pieces)
    assert (list(stream.times), stream.num_output_tokens) == (times, count)
    assert stream.complete and stream.error is None


@pytest.mark.parametrize(
    ("body", "complete"),
    [
        (token("a") + token("b", "length"), True),  # no [DONE]
        ((token("a") + token("b", "length")).rstrip("\n"), True),  # nor an end of the last line
        (token("a") + "data: [DONE]", True),
        (token("a") + "data:[DONE]\r", True),
        (token("a"), False),
        (token("a") + token("b", "length")[:20], False),
        ("", False),
    ],
)
def test_how_a_stream_ends(body: str, complete: bool) -> None:
    assert read(body.encode()).complete is complete


def test_lines_as_the_standard_has_them() -> None:
    """Several lines of data are one event; names, ids, comments and unknown fields carry no output."""
    body = (
        "\ufeffretry: 5\n\n: hello\nevent: message\nid: 7\n"
        'data: {"choices": [{"text": "a",\ndata:"finish_reason": "stop"}]}\nnonsense\n\n'
        "event: ping\n\ndata: [DONE]\n\n"
    )
    stream = read(body.encode())
    assert (list(stream.times), stream.complete, stream.error) == ([0.0], True, None)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ('event: error\ndata: {"message": "worker 1 is gone"}\n\n', "worker 1 is gone"),
        ("event: error\ndata: out of memory\n\n", "out of memory"),
        ('data: {"error": {"message": "busy", "code": 503}}\n\n', "busy"),
        ("data: [1]\n\n", "is not what /v1/completions sends"),
        ("data: " + "[" * 200_000 + "\n\n", "is not what /v1/completions sends"),
        ("data: \udcff\n\n", "is not what /v1/completions sends"),
        ("data: " + "x" * (5 << 20), "longer than any answer"),
        ('{"error": "no streaming here"}', "the answer is no stream: no streaming here"),
        ("<html><body>Welcome\n</body></html>", "the answer is no stream: <html><body>Welcome </body></html>"),
    ],
)
def test_what_is_no_answer_is_an_error(body: str, says: str) -> None:
    before = token("a") if body.startswith(("event", "data")) else ""
    stream = read(before.encode() + body.encode(errors="surrogateescape"), DONE.encode() if before else b"")
    assert stream.error is not None and says in stream.error


@given(st.binary(max_size=300), st.integers(0, 300))
def test_no_bytes_raise(data: bytes, cut: int) -> None:
    for status in (200, 500):
        read(data[:cut], data[cut:], b"data: " + data + b"\n\n", status=status)


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
