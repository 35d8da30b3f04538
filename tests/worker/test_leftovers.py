"""What processes leave behind: nothing, however they end; and what others may have left is not believed."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from longspan import LLM, SamplingParams
from longspan.cache import is_own, private_folder, remove_leftovers
from longspan.engine.tokenizer import Tokenizer
from longspan.errors import EngineDeadError
from longspan.log_fields import FIELDS
from longspan.models.catalog import ResolvedModel
from longspan.native.build import BuildError, built_library
from longspan.native.isa import wanted_isas
from tests.models.tiny import write_random_model
from tests.models.tokenizers_zoo import byte_level
from tests.processes import of_session, read, wait_until

FORGETS = """
import sys
from longspan import LLM
if __name__ == "__main__":
    llm = LLM(sys.argv[1], instances=2, kv_tokens=64, threads_per_device=1, dtype="float32")
    print("ready", flush=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("tiny"), byte_level(), 400)


class Server:
    """`longspan serve` of two instances, in a session of its own, with a folder of its own for what is temporary."""

    def __init__(self, model: Path, temporary: Path) -> None:
        options = ["--instances", "2", "--kv-tokens", "64", "--dtype", "float32", "--threads-per-device", "1"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "longspan", "serve", str(model), *options, "--port", "0"], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "TMPDIR": str(temporary)},
        )  # fmt: skip

    def processes(self) -> list[int]:
        """Its own, and all that have begun with it."""
        return of_session(self.process.pid)

    def workers(self) -> list[int]:
        """Its worker processes, by the name of their entry, in the order in which they began."""
        return sorted(pid for pid in self.processes() if b"spawn_main" in read(pid, "cmdline"))

    def meeting(self) -> list[int]:
        """Those of them that have met, or are about to."""
        return [pid for pid in self.workers() if b"memfd:longspan" in read(pid, "maps")]

    def until_it_serves(self) -> None:
        assert self.process.stdout is not None
        seen = []
        for line in self.process.stdout:
            seen.append(line)
            if re.search(r"serves .* at http://", line):
                return
        raise AssertionError("".join(seen))

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=60)  # what else may write there has ended, too


@pytest.mark.parametrize("when", ["workers start", "they load", "one comes back, and the other is stopped"])
def test_a_killed_server_leaves_nothing(folder: Path, tmp_path: Path, when: str) -> None:
    """No process, and no file; the memory in which workers met is theirs, and went with them."""
    in_memory = set(Path("/dev/shm").iterdir())
    server = Server(folder, tmp_path)
    try:
        if when == "workers start":
            wait_until(lambda: bool(server.workers()))
        elif when == "they load":
            wait_until(lambda: bool(server.meeting()))
        else:
            server.until_it_serves()
            lost, other = server.workers()
            os.kill(lost, signal.SIGKILL)
            wait_until(lambda: any(pid not in (lost, other) for pid in server.meeting()))
            os.kill(other, signal.SIGSTOP)
    finally:
        server.kill()
    wait_until(lambda: not server.processes())
    assert not list(tmp_path.iterdir())
    new = set(Path("/dev/shm").iterdir()) - in_memory
    assert not [path for path in new if path.name.startswith("longspan")]


def test_a_program_that_forgets_to_close_its_engine_ends(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(FORGETS)
    command = [sys.executable, str(tmp_path / "program.py"), str(folder)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (0, "ready\n")


def test_a_killed_worker_says_what_it_may_have_been(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with LLM(
        str(folder), instances=2, kv_tokens=64, threads_per_device=1, dtype="float32", transport="gloo"
    ) as llm:
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
    own = getattr(told[0], FIELDS)
    assert own["worker"] == own["instance"] and f"worker {own['worker']} " in told[0].getMessage()


# -- places -----------------------------------------------------------------------------------------------------------


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
