"""Paths are looked at before the work, and looking changes nothing; results appear whole or not at all."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from longspan.errors import ConfigError
from longspan.files import check_folder_writable, check_readable, check_writable, write_whole


def test_looking_leaves_files_as_they_are(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("content")
    os.utime(old, (1, 1))
    for path in (old, new, Path("/dev/null")):
        check_writable(path)
    check_readable(old)
    assert (old.read_text(), old.stat().st_mtime, new.exists()) == ("content", 1, False)
    check_folder_writable(tmp_path / "a/b")
    assert (tmp_path / "a/b").is_dir() and not list((tmp_path / "a/b").iterdir())


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    """That would wait for its other end, and take what comes only once."""
    os.mkfifo(tmp_path / "pipe")
    check_readable(tmp_path / "pipe")
    check_writable(tmp_path / "pipe")


@pytest.mark.parametrize("name", ["no/file", ".", "file/x", "x" * 300, "a\0b", "/proc/x", "/dev/null/x"])
def test_what_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written: "):
        check_writable(name)


@pytest.mark.parametrize("name", ["file", "file/y", "x" * 300, "a\0b", "/proc/x"])
def test_folders_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot be written: |must be a folder"):
        check_folder_writable(name)


@pytest.mark.parametrize("name", ["none", ".", "x" * 300, "a\0b"])
def test_what_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read: "):
        check_readable(name)


def test_a_disk_that_is_full_leaves_a_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError):
            write_whole(path, bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]
    write_whole(path, bytes(2000))
    assert path.read_bytes() == bytes(2000) and list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_put_in_place_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        write_whole(tmp_path / "folder", b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "file", tmp_path / "link"
    link.symlink_to(target)
    for content in (b"made", b"written again"):
        write_whole(link, content)
        assert link.is_symlink() and target.read_bytes() == content
    assert list(target.parent.iterdir()) == [target]


def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_whole(pipe, b"content")
        assert os.read(reader, 100) == b"content" and pipe.is_fifo()
    finally:
        os.close(reader)


def test_a_device_that_is_full_says_so() -> None:
    with pytest.raises(OSError, match="No space"):
        write_whole(Path("/dev/full"), b"content")
    assert Path("/dev/full").is_char_device()
