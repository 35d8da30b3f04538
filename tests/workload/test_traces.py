from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.errors import TraceError
from longspan.workload.traces import BLOCK_TOKENS, TraceRequest, read_trace
from tests.conftest import DATA

COUNTS = st.integers(1, 2**40)
GAPS = st.floats(0, 1e4, allow_nan=False)


@st.composite
def traces(draw: st.DrawFn, *, arrivals: bool = True) -> list[TraceRequest]:
    """Requests as a reader gives them: the first arrives at 0."""
    rows = draw(st.lists(st.tuples(GAPS, COUNTS, COUNTS), min_size=1, max_size=20))
    at, requests = 0.0, []
    for number, (gap, prompt, output) in enumerate(rows):
        at += gap if number else 0.0
        requests.append(TraceRequest(at if arrivals else None, prompt, output))
    return requests


def write(folder: Path, name: str, lines: list[str], *, zipped: bool = False) -> Path:
    content = ("\n".join(lines) + "\n").encode()
    path = folder / name
    path.write_bytes(gzip.compress(content) if zipped else content)
    return path


def csv_lines(requests: list[TraceRequest]) -> list[str]:
    rows = [
        f"{'' if r.arrived_at_s is None else repr(r.arrived_at_s)},{r.num_prompt_tokens},{r.num_output_tokens}"
        for r in requests
    ]
    return ["arrived_at_s,num_prefill_tokens,num_decode_tokens", *rows]


@given(requests=st.one_of(traces(), traces(arrivals=False)), zipped=st.booleans())
def test_what_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, requests: list[TraceRequest], zipped: bool
) -> None:
    path = write(tmp_path_factory.mktemp("trace"), "t.csv", csv_lines(requests), zipped=zipped)
    assert read_trace(path) == requests


@given(requests=traces(), start=st.integers(0, 10**6))
def test_mooncake_counts_milliseconds_from_the_first_row(
    tmp_path_factory: pytest.TempPathFactory, requests: list[TraceRequest], start: int
) -> None:
    rows = [
        {
            "timestamp": start + round((r.arrived_at_s or 0) * 1000),
            "input_length": r.num_prompt_tokens,
            "output_length": r.num_output_tokens,
            "hash_ids": [r.num_prompt_tokens, 7],
        }
        for r in requests
    ]
    path = write(tmp_path_factory.mktemp("trace"), "t.jsonl", [json.dumps(row) for row in rows])
    for read, wanted in zip(read_trace(path), requests, strict=True):
        assert (read.num_prompt_tokens, read.num_output_tokens) == (wanted.num_prompt_tokens, wanted.num_output_tokens)
        assert read.arrived_at_s == pytest.approx(wanted.arrived_at_s, abs=0.001)
        assert read.prefix_block_ids == (wanted.num_prompt_tokens, 7)


def test_azure_times_with_seven_digits_of_a_second(tmp_path: Path) -> None:
    lines = [
        "TIMESTAMP,ContextTokens,GeneratedTokens",
        "2023-11-16 23:59:59.9799600,4808,10",
        "2023-11-17 00:00:01.0319600,3180,0",
        "2023-11-17 01:00:01.5+01:00,110,27",
    ]
    requests = read_trace(write(tmp_path, "azure.csv", lines))
    assert [(r.num_prompt_tokens, r.num_output_tokens) for r in requests] == [(4808, 10), (3180, 1), (110, 27)]
    assert [r.arrived_at_s for r in requests] == pytest.approx([0, 1.052, 1.52004])


def test_other_columns_and_their_order_do_not_matter(tmp_path: Path) -> None:
    lines = ["task,num_decode_tokens,arrived_at_s,num_prefill_tokens", "a,3,0.5,2", "", "b,30,1.5,20"]
    assert read_trace(write(tmp_path, "t.csv", lines)) == [TraceRequest(0, 2, 3), TraceRequest(1, 20, 30)]


def test_real_extracts() -> None:
    mooncake = read_trace(DATA / "mooncake_conversation_200.csv.gz")
    assert len(mooncake) == 200 and mooncake[0] == TraceRequest(0.0, 6758, 500, tuple(range(14)))
    assert all(len(r.prefix_block_ids) == math.ceil(r.num_prompt_tokens / BLOCK_TOKENS) for r in mooncake)
    assert mooncake[1].prefix_block_ids[:2] == (0, 14)  # shares one block with the first
    azure = read_trace(DATA / "azure_conv_2023_200.csv.gz")
    assert len(azure) == 200 and azure[:2] == [TraceRequest(0.0, 374, 44), TraceRequest(4.314579, 396, 109)]
    mixed = read_trace(DATA / "loongserve_mixed_200.csv.gz")
    assert len(mixed) == 200 and mixed[0] == TraceRequest(None, 30873, 11)


HEADER = "arrived_at_s,num_prefill_tokens,num_decode_tokens"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens"


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([HEADER, "0,5,5", "1,x,5"], "line 3, column num_prefill_tokens: 'x' is not a whole number, 1 or more"),
        ([HEADER, "0,5,0"], "line 2, column num_decode_tokens: '0' is not"),
        ([HEADER, "0,5"], "line 2, column num_decode_tokens: missing"),
        ([HEADER, "nan,5,5"], "line 2, column arrived_at_s: 'nan' is not a number"),
        ([HEADER, "2,5,5", "1,5,5"], "line 3, column arrived_at_s: '1' is not at or after"),
        ([HEADER, "2,5,5", ",5,5"], "line 3, column arrived_at_s: '' is not like the rows before"),
        ([AZURE, "yesterday,5,5"], "line 2, column TIMESTAMP: 'yesterday' is not a time"),
        ([HEADER], "there is no request in it"),
        ([], "line 1: neither a CSV header"),
        (["a,b,c", "1,2,3"], "line 1: neither a CSV header (arrived_at_s,num_prefill_tokens,num_decode_tokens; "),
        (['{"timestamp": 1, "input_length": 2}'], "line 1, column output_length: missing"),
        (['{"timestamp": 1, "input_length": 2.5, "output_length": 1}'], "column input_length: 2.5 is not"),
        (['{"timestamp": true, "input_length": 2, "output_length": 1}'], "column timestamp: True is not a number"),
        (['{"timestamp": 1, "input_length": 2, "output_length": 1, "hash_ids": ["a"]}'], "column hash_ids: ['a'] is"),
        (['{"timestamp": 1, "input_length": 2, "output_length": 1}', "{"], "line 2: not valid JSON"),
    ],
)
def test_a_malformed_file_is_refused_by_place(tmp_path: Path, lines: list[str], says: str) -> None:
    path = write(tmp_path, "bad.csv", lines)
    with pytest.raises(TraceError) as error:
        read_trace(path)
    assert says in str(error.value) and str(error.value).startswith(str(path))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="No such file"):
        read_trace(tmp_path / "nowhere.csv")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"x" * 1000)[:-9])
    with pytest.raises(TraceError, match="damaged"):
        read_trace(tmp_path / "cut.csv.gz")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TraceError, match="not UTF-8"):
        read_trace(tmp_path / "binary.csv")


def test_block_ids_for_another_trace(tmp_path: Path) -> None:
    path = write(tmp_path, "t.csv", [HEADER, "0,5,5", "1,5,5"])
    write(tmp_path, "t.prefix_hash_ids.jsonl", ["[1]"])
    with pytest.raises(TraceError, match=r"1 lists of block ids for 2 requests of t\.csv"):
        read_trace(path)
