"""A log that is broken, or none, is told with its file and line."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from longspan.errors import ReplayError
from longspan.metrics.event_log import read_event_log, replay
from tests.core.driver import Driver
from tests.event_log.runs import (
    read,
    records_of,
    write,
)


def test_a_last_line_cut_short_is_left_out_and_reported(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])
    assert replay(path) is None
    log = read_event_log(path)
    count = len(list(log))
    assert log.truncated_line == count + 2


BROKEN = {
    "no JSON": (b'[1.0,["arrive"\n', "truncated|malformed|expected"),
    "no UTF-8": (b'[1.0,["arrive","\xff",1,1]]\n', "UTF-8|utf-8"),
    "an object": (b'{"now": 1.0}\n', "array"),
    "no event": (b"[1.0]\n", "a time and an event"),
    "no time": (b'["now",["moved",1]]\n', "its time is 'now'"),
    "unknown event": (b'[1.0,["boom",1]]\n', "'boom' is no event"),
    "missing field": (b'[1.0,["moved"]]\n', "'moved' is no event, or not one with 0 values"),
    "no number": (b'[1.0,["moved","one"]]\n', "'one' is no whole number"),
    "unknown action": (b'[1.0,["moved",1],["dance",3]]\n', "is no action"),
    "unknown request": (b'[1.0,["abort",99999]]\n', "no request has the number 99999"),
    "unknown batch": (b"[1.0,99999]\n", "batch 99999 does not run"),
    "no such output": (b'[1.0,["left",1],["run",500,[9],["z",0,1,[9]]]]\n[1.0,[500,7,"stop"]]\n', "has no output 7"),
    "no reason": (b'[1.0,["left",1],["run",500,[9],["z",0,1,[9]]]]\n[1.0,[500,0,"why"]]\n', "'why' is none of stop"),
    "nothing to continue": (b'[1.0,["moved",1],17]\n', "batch 17 continues none"),
    "too much to continue": (b'[1.0,["moved",1],["run",17,[9],3]]\n', "continues more than the 0 segments"),
    "impossible": (b'[1e9,["moved",1]]\n', "the scheduler refuses it: migration 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_line_is_named_with_its_cause(path: Path, name: str) -> None:
    broken, cause = BROKEN[name]
    lines = path.read_bytes().splitlines(keepends=True)
    number = 4 + broken.count(b"\n")
    path.write_bytes(b"".join([*lines[:4], broken, *lines[4:]]))
    with pytest.raises(ReplayError, match=rf"line {number}: .*({cause})"):
        list(read_event_log(path))
        replay(path)


@pytest.mark.parametrize(
    ("header", "cause"),
    [
        (b"", "no header"),
        (b'{"version": 1', "no header"),
        (b"[1]\n", "object"),
        (b"# Notes\n", "line 1: this is no event log"),
        (b"[1, 2]\n", "line 1: this is no event log"),
        (b"\x80\xff\n", "line 1: this is no event log"),
        (b'{"version": 99, "config": {}}\n', "version 99"),
        (b'{"version": 1, "config": {"num_instances": 0}}\n', "num_instances is 0"),
        (b'{"version": 2, "policy": "medha", "config": {"num_instances": "two"}}\n', "num_instances|int"),
        (b'{"version": 1}\n', "config is None"),
        (b'{"version": 2, "policy": "medha"}\n', "config"),
        (b'{"version": 2, "policy": "medha", "config": {}, "requests": [["a"]]}\n', "is no number"),
        (b'{"version": 2, "policy": "medha", "config": {}, "running": [["a"]]}\n', "is no action"),
    ],
)
def test_a_broken_header(tmp_path: Path, header: bytes, cause: str) -> None:
    (tmp_path / "log").write_bytes(header)
    with pytest.raises(ReplayError, match=cause):
        read_event_log(tmp_path / "log")


def test_what_is_no_log(tmp_path: Path) -> None:
    for name in ("missing", "no folder/missing"):
        with pytest.raises(ReplayError, match="No such file"):
            read_event_log(tmp_path / name)
    with pytest.raises(ReplayError, match="is no file"):
        read_event_log(tmp_path)
    (tmp_path / "log.gz").write_bytes(gzip.compress(b"{}\n" * 1000)[:20] + b"\xff" * 100)
    with pytest.raises(ReplayError, match="compressed, and broken"):
        read_event_log(tmp_path / "log.gz")


def test_a_compressed_log_of_several_members_is_read_whole(busy_day: Driver, tmp_path: Path) -> None:
    lines = write(tmp_path / "log", busy_day).read_bytes().splitlines(keepends=True)
    path = tmp_path / "log.gz"
    path.write_bytes(gzip.compress(b"".join(lines[:20])) + gzip.compress(b"".join(lines[20:])))
    assert read(path) == records_of(busy_day)
    path.write_bytes(path.read_bytes() + b"garbage")
    with pytest.raises(ReplayError, match="compressed, and broken"):
        read(path)


@pytest.mark.parametrize(
    "line",
    [
        b'[1.0,["abort","a"],{"why":[["step",[],[],{"s":1' + b"0" * 400 + b"}]]}]",
        b"[" * 100_000,
        b"[1" + b"0" * 400 + b',["abort","a"]]',
    ],
)
def test_numbers_and_depths_beyond_all_measure_are_told_with_their_line(path: Path, line: bytes) -> None:
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(ReplayError, match=r"events.jsonl, line \d+: "):
        read(path)


@pytest.mark.parametrize("piece", [0, -1])
def test_pieces_count_from_1(path: Path, piece: int) -> None:
    path.write_bytes(path.read_bytes().replace(b'"piece":1', b'"piece":%d' % piece, 1))
    with pytest.raises(ReplayError, match="they count from 1"):
        read_event_log(path)


def test_a_piece_of_any_number_is_told_at_once(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"piece":1', b'"piece":10000000000', 1))
    assert read_event_log(path).missing() == "its pieces 1 to 9999999999 are missing"
