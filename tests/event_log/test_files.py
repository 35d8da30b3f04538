"""The files of a run: compressed or not, one for each start, in pieces that replay as a chain."""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.errors import ReplayError
from longspan.metrics.event_log import read_event_log, replay
from tests.core.driver import Driver
from tests.event_log.runs import (
    a_small_day,
    read,
    records_of,
    write,
)

# kinds of files


def test_a_compressed_log(busy_day: Driver, tmp_path: Path) -> None:
    plain = write(tmp_path / "a.jsonl", busy_day, run="x")
    packed = write(tmp_path / "a.jsonl.gz", busy_day, run="x")
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()
    assert packed.stat().st_size < plain.stat().st_size / 2
    assert read(packed) == records_of(busy_day) and replay(packed) is None


@pytest.mark.parametrize("name", ["events.jsonl", "events.jsonl.gz", "events", "a.b.log"])
def test_each_start_has_a_file_of_its_own(busy_day: Driver, tmp_path: Path, name: str) -> None:
    paths = [write(tmp_path / name, busy_day) for _ in range(3)]
    assert paths[0] == tmp_path / name and len(set(paths)) == 3
    numbered = {"events.jsonl": "events-2.jsonl", "events.jsonl.gz": "events-2.jsonl.gz", "events": "events-2",
                "a.b.log": "a.b-2.log"}  # fmt: skip
    assert paths[1].name == numbered[name]
    for path in paths:
        assert read(path) == records_of(busy_day)


def test_writers_that_start_at_once_never_share_a_file(tmp_path: Path) -> None:
    code = (
        "import sys; from longspan.config import SchedulerConfig; from longspan.metrics.event_log import *; "
        "sys.stdin.readline(); w = EventLogWriter(sys.argv[1], SchedulerConfig(), run=sys.argv[2]); w.close(); "
        "print(w.path, w.errors)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "log.jsonl")]
    processes = [
        subprocess.Popen([*command, str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for n in range(4)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60)[0].split() for process in processes]
    assert len({path for path, _ in said}) == 4 and {errors for _, errors in said} == {"0"}
    runs = {read_event_log(path).pieces[0].header.run for path, _ in said}
    assert runs == {"0", "1", "2", "3"}


# pieces


def test_the_pieces_of_a_run_replay_as_a_chain(busy_day: Driver, tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", busy_day, max_bytes=4096)
    pieces = sorted(tmp_path.iterdir(), key=lambda piece: int("0" + piece.suffix[1:]) if piece != path else 1)
    assert [piece.name for piece in pieces[:3]] == ["log.jsonl", "log.jsonl.2", "log.jsonl.3"]
    for piece in (pieces[0], pieces[2], pieces[-1]):
        assert read(piece) == records_of(busy_day)
        assert replay(piece) is None
        assert read_event_log(piece).missing() is None
    assert all(piece.stat().st_size < 4096 + 2048 for piece in pieces)
    assert "alive" not in pieces[1].read_text() and '"requests":' in pieces[1].read_text().splitlines()[0]


def test_another_run_beside_it_is_no_piece_of_it(busy_day: Driver, tmp_path: Path) -> None:
    paths = [write(tmp_path / "log.jsonl", busy_day, max_bytes=8192) for _ in range(2)]
    assert [path.name for path in paths] == ["log.jsonl", "log-2.jsonl"]
    stray = write(tmp_path / "stray", busy_day)
    stray.rename(tmp_path / "log.jsonl.99")
    for path in paths:
        assert read(path) == records_of(busy_day) and replay(path) is None
    assert read(tmp_path / "log.jsonl.99") == records_of(busy_day)


def test_only_the_newest_pieces_are_kept_and_tell_what_is_missing(busy_day: Driver, tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", busy_day, max_bytes=4096, keep=2)
    kept = sorted(tmp_path.iterdir())
    assert len(kept) == 2 and not path.exists()
    for name in (path, *kept):  # the name that was given is enough, though no such file is left
        log = read_event_log(name)
        assert re.fullmatch(r"its pieces 1 to \d+ are missing", str(log.missing()))
        records = records_of(busy_day)
        assert read(name) == records[-len(read(name)) :]
        with pytest.raises(ReplayError, match=r"pieces 1 to \d+ are missing.*every event.*longspan explain"):
            replay(name)
    # A run that starts now takes no name that this one's next piece may want.
    assert write(path, busy_day).name == "log-2.jsonl"


def test_a_piece_that_was_lost_is_missed(busy_day: Driver, tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", busy_day, max_bytes=4096)
    (tmp_path / "log.jsonl.3").unlink()
    assert read_event_log(path).missing() == "its piece 3 is missing"
    with pytest.raises(ReplayError, match="piece 3 is missing"):
        replay(path)
    second = tmp_path / "log.jsonl.2"
    second.write_bytes(second.read_bytes()[:-5])
    (tmp_path / "log.jsonl").rename(tmp_path / "renamed")
    assert read_event_log(path).missing() == "its pieces 1, 3 are missing"
    assert len(read_event_log(tmp_path / "renamed").pieces) == 1


def test_a_piece_that_is_cut_short_before_another_does_not_replay(busy_day: Driver, tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", busy_day, max_bytes=4096)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ReplayError, match=r"log\.jsonl, line \d+: it is cut short, though a piece follows"):
        replay(path)


def test_a_server_that_is_killed_as_it_begins_a_piece_leaves_a_log_that_replays(
    busy_day: Driver, tmp_path: Path
) -> None:
    path = write(tmp_path / "log.jsonl", busy_day, max_bytes=4096)
    last = max(tmp_path.iterdir(), key=lambda piece: int("0" + piece.suffix[1:]) if piece != path else 1)
    for left in (b"", last.read_bytes()[:20]):
        last.write_bytes(left)
        assert replay(path) is None and replay(last) is None


@settings(max_examples=15)
@given(st.integers(1, 20_000), st.sampled_from(["log", "log.gz"]))
def test_any_size_of_pieces_reads_the_same(tmp_path_factory: pytest.TempPathFactory, size: int, name: str) -> None:
    folder = tmp_path_factory.mktemp("pieces")
    driver = a_small_day()
    path = write(folder / name, driver, max_bytes=size)
    assert read(path) == records_of(driver)
    assert replay(path) is None
