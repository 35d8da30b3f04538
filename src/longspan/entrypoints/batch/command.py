"""`longspan run-batch`: a file of requests in, a file of answers out."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from contextlib import suppress
from pathlib import Path

import uvloop

from longspan.config import EngineConfig
from longspan.engine.protocol import EngineClient
from longspan.entrypoints.batch.lines import custom_id_of, numbered_lines
from longspan.entrypoints.batch.results import Results
from longspan.entrypoints.batch.run import Batch, Counts
from longspan.entrypoints.live_line import show
from longspan.entrypoints.logs import configure_logging
from longspan.entrypoints.openai.app import create_app
from longspan.entrypoints.serve import STOPPED_BY_SIGNAL, StartEngine, start_and_show
from longspan.entrypoints.server_config import ServerConfig
from longspan.errors import ConfigError
from longspan.files import check_readable, check_writable
from longspan.interrupts import stopped_by

logger = logging.getLogger("longspan.batch")


def run_batch(
    engine_config: EngineConfig, source: Path, target: Path, at_once: int, *, start: StartEngine = start_and_show
) -> int:
    """Answer what is in `source`, into `target`; returns 0 once every line has its result, 128 + signal if stopped.

    Raises ConfigError for what can be known before anything is loaded; EngineDeadError.
    """
    if at_once < 1:
        raise ConfigError(f"max_concurrency is {at_once}, but must be at least 1")
    check_readable(source)
    check_writable(target)
    if target.exists() and target.samefile(source):
        raise ConfigError(f"{target} is the input; give another --output-file")
    counts, names = _survey(source)
    results = Results(target, names)
    configure_logging(ServerConfig())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(engine_config, source, results, counts, at_once, start))


def _survey(source: Path) -> tuple[Counts, set[str]]:
    names: set[str] = set()
    total = 0
    for _, line in numbered_lines(source):
        total += 1
        if (name := custom_id_of(line)) is not None:
            names.add(name)
    if not total:
        raise ConfigError(f"{source} holds no requests")
    return Counts(total), names


async def _run(
    engine_config: EngineConfig, source: Path, results: Results, counts: Counts, at_once: int, start: StartEngine
) -> int:
    signals: list[int] = []
    main = asyncio.current_task()
    assert main is not None

    def stop(number: int) -> None:
        signals.append(number)
        main.cancel()

    try:
        with stopped_by(stop):
            engine = await start(engine_config)
            try:
                await _answer(engine, source, results, counts, at_once)
            finally:
                await engine.close()
    except asyncio.CancelledError:
        if not signals:
            raise
        logger.warning("stopped; the same command goes on from what is in %s", results.path)
        return STOPPED_BY_SIGNAL + signals[-1]
    return 0


async def _answer(engine: EngineClient, source: Path, results: Results, counts: Counts, at_once: int) -> None:
    begin = time.monotonic()
    app = create_app(engine, ServerConfig())
    progress = asyncio.create_task(show(lambda: counts.line(time.monotonic() - begin)))
    try:
        with results:
            await Batch(app, engine, numbered_lines(source), results, counts, at_once).run()
    finally:
        progress.cancel()
        with suppress(asyncio.CancelledError):
            await progress
        app.state.context.close()
        print(counts.line(time.monotonic() - begin), file=sys.stderr)
