"""What processes leave behind: nothing, however they end; and what others may have left is not believed."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from longspan import LLM, SamplingParams
from longspan.cache import is_own, private_folder, remove_leftovers
from longspan.engine.tokenizer import Tokenizer
from longspan.errors import EngineDeadError
from longspan.executor.meeting_place import MeetingPlace
from longspan.models.catalog import ResolvedModel
from longspan.native.build import BuildError, built_library
from longspan.native.isa import wanted_isas
from tests.models.tiny import write_random_model
from tests.models.tokenizers_zoo import byte_level

PROGRAM = """
import sys
from longspan import LLM, SamplingParams
if __name__ == "__main__":
    llm = LLM(sys.argv[1], instances=2, kv_tokens=64, threads_per_device=1, dtype="float32")
    print("ready", flush=True)
    if sys.argv[2] == "wait":
        sys.stdin.read()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("tiny"), byte_level(), 400)


@pytest.fixture
def started(folder: Path, tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts an engine in a program of its own, which ends with the test."""
    (tmp_path / "program.py").write_text(PROGRAM)
    programs: list[subprocess.Popen[str]] = []

    def start(how: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(tmp_path / "program.py"), str(folder), how]
        programs.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return programs[-1]

    yield start
    for program in programs:
        program.kill()
        program.communicate()


def workers_of(program: subprocess.Popen[str]) -> list[int]:
    """Its worker processes, by the name of their entry."""
    children = Path(f"/proc/{program.pid}/task").glob("*/children")
    pids = [int(pid) for file in children for pid in file.read_text().split()]
    return [pid for pid in pids if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def wait_until(condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.02)


def has_ended(pid: int) -> bool:
    """A killed orphan may be a zombie until the system's first process looks after it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_stopped_worker_ends_with_its_killed_engine(started: Callable[[str], subprocess.Popen[str]]) -> None:
    program = started("wait")
    assert program.stdout is not None and program.stdout.readline() == "ready\n"
    workers = workers_of(program)
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGSTOP)
    program.kill()
    program.wait()
    wait_until(lambda: all(map(has_ended, workers)))


def test_an_engine_killed_while_it_loads_leaves_no_worker_and_its_folder_goes_with_the_next(
    started: Callable[[str], subprocess.Popen[str]], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGSPAN_SHM", str(tmp_path))
    program = started("wait")
    wait_until(lambda: any(tmp_path.glob("longspan-*/*-to-*")))  # the workers exchange nothing yet
    workers = workers_of(program)
    program.kill()
    program.wait()
    assert workers
    wait_until(lambda: all(map(has_ended, workers)))
    (left,) = tmp_path.glob("longspan-*")
    with LLM(str(folder), instances=2, kv_tokens=64, threads_per_device=1, dtype="float32"):
        assert not left.exists()
    assert not list(tmp_path.glob("longspan-*"))


def test_a_program_that_forgets_to_close_its_engine_ends(started: Callable[[str], subprocess.Popen[str]]) -> None:
    program = started("forget")
    assert program.stdout is not None and program.stdout.readline() == "ready\n"
    assert program.wait(timeout=120) == 0


def test_a_killed_worker_says_what_it_may_have_been(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with LLM(str(folder), instances=2, kv_tokens=64, threads_per_device=1, dtype="float32") as llm:
        os.kill(llm.engine.executor.handles[1].process.pid, signal.SIGKILL)
        wait_until(lambda: llm.engine.error is not None)
        with pytest.raises(EngineDeadError, match=r"worker 1 .*killed from outside.*memory.*fewer --instances"):
            llm.generate([[5]], SamplingParams(max_tokens=1))


def test_workers_log_through_the_engine(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What all of them say while they load is said once."""
    monkeypatch.setenv("LONGSPAN_CPU_ISA", "torch")
    with caplog.at_level(logging.INFO, "longspan"), LLM(
        str(folder), instances=2, kv_tokens=64, threads_per_device=1, dtype="float32"
    ):  # fmt: skip
        pass
    told = [record for record in caplog.records if "the CPU kernels are not used" in record.getMessage()]
    assert [(record.name, record.levelname) for record in told] == [("longspan.native.library", "INFO")]
    assert told[0].getMessage().startswith("worker ")


# -- places -----------------------------------------------------------------------------------------------------------


def test_only_abandoned_meeting_places_are_removed(tmp_path: Path) -> None:
    alive = MeetingPlace(tmp_path)
    abandoned, file, link = (tmp_path / f"longspan-meeting-{name}" for name in ("old", "file", "link"))
    abandoned.mkdir()
    unlocked = tmp_path / "longspan-0_a1b2c3"  # of an engine of a version that did not lock it
    unlocked.mkdir()
    (abandoned / "0-to-1").touch()
    file.touch()
    (tmp_path / "elsewhere").mkdir()
    link.symlink_to(tmp_path / "elsewhere")
    newcomer = MeetingPlace(tmp_path)
    assert alive.path.is_dir() and newcomer.path.is_dir() and not abandoned.exists()
    assert unlocked.is_dir() and file.exists() and link.is_symlink() and (tmp_path / "elsewhere").is_dir()
    for place in (alive, newcomer, newcomer):
        place.close()
    assert not alive.path.exists() and not newcomer.path.exists()


def test_the_cache_is_closed_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "native").mkdir(parents=True)
    (tmp_path / "cache").chmod(0o777)
    assert private_folder("native").stat().st_mode & 0o022 == 0 and (tmp_path / "cache").stat().st_mode & 0o022 == 0
    file = tmp_path / "file"
    assert not is_own(file)
    file.touch(0o600)
    assert is_own(file)
    file.chmod(0o666)
    assert not is_own(file)


def test_old_leftovers_go_and_new_ones_stay(tmp_path: Path) -> None:
    for name in (".build-old", ".build-new"):
        (tmp_path / name).mkdir()
    os.utime(tmp_path / ".build-old", (0, 0))
    remove_leftovers(tmp_path, ".build-")
    assert [path.name for path in tmp_path.iterdir()] == [".build-new"]


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small one of our own, in a cache of our own."""
    if not wanted_isas():
        pytest.fail("these tests are for x86-64")
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "small.cpp").write_text('extern "C" int answer() { return 42; }')
    return built_library(wanted_isas()[0], tmp_path / "small.cpp")


def test_kernels_that_others_may_have_written_are_built_anew(library: Path, tmp_path: Path) -> None:
    """By their mode, by their owner, through a link (owners can be changed by root only)."""
    genuine = library.read_bytes()

    def of_somebody_else() -> None:
        os.chown(library, 12345, 12345)

    def link_of_somebody_else() -> None:
        (tmp_path / "evil").write_bytes(b"planted")
        library.unlink()
        library.symlink_to(tmp_path / "evil")
        os.lchown(library, 12345, 12345)

    plants: list[Callable[[], None]] = [lambda: library.chmod(0o666), lambda: library.chmod(0o620)]
    for plant in plants + [of_somebody_else, link_of_somebody_else] * (os.geteuid() == 0):
        library.write_bytes(b"planted")
        plant()
        assert built_library(wanted_isas()[0], tmp_path / "small.cpp") == library
        assert library.read_bytes() == genuine and is_own(library)


def test_a_cache_of_somebody_else_is_not_used(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's kernels serve instead."""
    if os.geteuid() == 0:
        os.chown(library.parent, 12345, 12345)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(BuildError, match=r"belongs to another user.*LONGSPAN_CACHE names another"):
        built_library(wanted_isas()[0], tmp_path / "small.cpp")


def test_a_tokenizer_that_others_may_have_written_is_converted_anew(
    model: ResolvedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its chat template is a program."""
    genuine = Tokenizer.load(model)
    converted = genuine._hf
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *args, **settings: converted)
    Tokenizer.load(model)
    (kept,) = (tmp_path / "tokenizers").iterdir()
    for plant in (lambda: (kept / "tokenizer.json").chmod(0o666), lambda: kept.chmod(0o777)):
        (kept / "tokenizer.json").write_text("{}")
        plant()
        assert Tokenizer.load(model).encode("Hi") == genuine.encode("Hi")
        assert (kept / "tokenizer.json").read_text() != "{}" and is_own(kept), "kept anew"
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", None)
    assert Tokenizer.load(model).encode("Hi") == genuine.encode("Hi"), "and read back"
