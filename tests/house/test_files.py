"""Paths are looked at before the work, and looking changes nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from longspan.errors import ConfigError
from longspan.files import check_folder_writable, check_readable, check_writable


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
