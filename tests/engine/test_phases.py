"""A start tells how far it is, to whoever listens, on a terminal and elsewhere; one that is cut off leaves nothing."""

from __future__ import annotations

import asyncio
import io
import logging
import multiprocessing
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from longspan import LLM
from longspan.config import EngineConfig
from longspan.engine.assembly import start_engine
from longspan.engine.phase_display import shown_phases
from longspan.errors import ConfigError, EngineDeadError
from longspan.executor.multiproc import MultiprocExecutor
from longspan.executor.workers_loading import WorkersLoading
from longspan.phases import Phase
from longspan.worker.messages import Loading
from longspan.worker.spec import WorkerSpec
from tests.engine.test_llm import tiny  # noqa: F401  (the fixture)

SETTINGS = {"dtype": "float32", "kv_tokens": 300, "threads_per_device": 1}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_every_phase_of_a_real_start(tiny: Path) -> None:  # noqa: F811
    heard: list[Phase] = []
    with LLM(str(tiny), on_phase=heard.append, policy="medha", instances=2, **SETTINGS):  # type: ignore[arg-type]
        pass
    texts = list(dict.fromkeys(phase.text for phase in heard if "compiling" not in phase.text))
    assert texts[:-1] == [
        f"reading the configuration of {tiny.name}", "starting 2 workers", "loading weights on 2 workers",
        "allocating KV for 300 tokens on each instance", "measuring the machine's speed",
    ]  # fmt: skip
    assert texts[-1].startswith("ready in ") and heard[-1].is_last
    shares = [phase.share for phase in heard if phase.text.startswith("loading") and phase.share is not None]
    # Of each of two workers: two layers, and what is around them. No step back, and all of it in the end.
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1 and len(shares) == 2 * 4


def test_threads_load_once_for_all(tiny: Path) -> None:  # noqa: F811
    heard: list[Phase] = []
    with LLM(str(tiny), on_phase=heard.append, executor="inproc", instances=2, **SETTINGS):  # type: ignore[arg-type]
        pass
    loading = [phase for phase in heard if phase.text == "loading weights on 1 worker"]
    assert loading[-1].share == 1 and loading[-1].total == 3


def test_one_that_compiles_holds_all_up() -> None:
    heard: list[Phase] = []
    workers = WorkersLoading(2, heard.append)
    for rank, loading in [(0, Loading("kernels")), (1, Loading("weights", 1, 4)), (0, Loading("weights", 0, 4))]:
        workers.take(rank, loading)
    compiling = Phase("compiling kernels, once for this machine")
    assert heard == [
        Phase("starting 2 workers"), compiling, compiling, Phase("loading weights on 2 workers", 1, 8),
    ]  # fmt: skip


def test_elsewhere_than_on_a_terminal_each_phase_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_phases() as show:
        for phase in (Phase("a"), Phase("b", 0, 4), Phase("b", 2, 4), Phase("b", 4, 4), Phase("ready", is_last=True)):
            show(phase)
    assert capsys.readouterr().err == "longspan: a\nlongspan: b\nlongspan: ready\n"
    with shown_phases(say=None) as show:
        show(Phase("a"))
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_one_line_lives_and_logs_go_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    handler = logging.StreamHandler(terminal)
    logging.getLogger().addHandler(handler)
    try:
        with shown_phases() as show:
            show(Phase("loading weights", 50_000_000, 100_000_000, "bytes"))
            assert handler.stream is not terminal
            logging.getLogger("x").warning("a warning")
        assert handler.stream is terminal and sys.stderr is terminal
    finally:
        logging.getLogger().removeHandler(handler)
    shown = terminal.getvalue()
    assert "loading weights" in shown and "50 of 100 MB" in shown and "a warning\n" in shown


def test_a_start_that_is_cut_off_twice_ends_its_workers(tiny: Path) -> None:  # noqa: F811
    """Two signals at once, as `timeout` and a hasty hand send them: the second must not keep the first from ending."""

    async def cut_off(after: str) -> None:
        reached = asyncio.Event()
        loop = asyncio.get_running_loop()

        def on_phase(phase: Phase) -> None:
            if phase.text.startswith(after):
                loop.call_soon_threadsafe(reached.set)

        config = EngineConfig(model=str(tiny), **SETTINGS)  # type: ignore[arg-type]
        start = asyncio.create_task(start_engine(config, on_phase=on_phase))
        await reached.wait()
        start.cancel()
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start

    for after in ("starting", "loading"):
        asyncio.run(cut_off(after))
        assert not multiprocessing.active_children()


def test_a_refused_start_leaves_no_thread(tiny: Path) -> None:  # noqa: F811
    for settings in ({"tp": 3}, {"kv_tokens": 3}, {"pp": 9}):
        with pytest.raises(ConfigError):
            LLM(str(tiny), **settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="must be a whole number"):
        LLM(str(tiny), kv_tokens="300")


@pytest.mark.parametrize("started", [0, 1])
def test_closing_a_start_leaves_no_worker_behind(tiny: Path, started: int) -> None:  # noqa: F811
    """Whether none of four processes is there yet, or some are: no other comes once `close` has returned."""
    specs = [
        WorkerSpec(
            model_path=str(tiny), instance=number, tp_rank=0, num_instances=4, tp=1, dtype="float32", device="cpu",
            threads=1,
        )
        for number in range(4)
    ]  # fmt: skip
    executor = MultiprocExecutor(specs, 30.0)
    about_to = threading.Event()

    def on_phase(phase: Phase) -> None:
        if started == 0:  # it starts nothing before `close` has been called
            about_to.set()
            while not executor.closing:
                pass

    with ThreadPoolExecutor(1) as pool:
        start = pool.submit(executor.start, lambda _: None, lambda _: None, on_phase)
        if started == 0:
            assert about_to.wait(60)
        while len(executor.handles) < started:
            pass
        executor.close()
        left = multiprocessing.active_children()
        assert isinstance(start.exception(60), EngineDeadError)
        assert not left and not multiprocessing.active_children()
