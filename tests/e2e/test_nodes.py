"""Two machines on the loopback interface: an engine here, and the agent of another node, with workers of its own."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from longspan.config import EngineConfig
from longspan.engine.assembly import start_engine
from longspan.engine.async_llm import AsyncLLM
from tests.e2e.conftest import wait_for
from tests.e2e.logged_process import LoggedProcess
from tests.e2e.test_losses import LENGTHS, TOKENS, WITHIN_S, Streams, folder, has_restarted  # noqa: F401
from tests.ports import free_port

KEY = "a key of the tests"
INSTANCES, AWAY = 3, 2
"""Two are on the first machine; this one is on the other."""


class Agent(LoggedProcess):
    """`longspan serve --node-rank 1`, and what it logs."""

    def __init__(self, folder: Path, port: int, *options: str, key: str = KEY) -> None:  # noqa: F811
        super().__init__(
            [sys.executable, "-m", "longspan", "serve", str(folder), "--nnodes", "2", "--node-rank", "1", "--master",
             f"127.0.0.1:{port}", "--instances", str(INSTANCES), "--dtype", "float32", "--kv-tokens", "2000",
             "--drain-timeout-s", "60", *options],
            {"LONGSPAN_SERVE_FLEET_KEY": key},
        )  # fmt: skip


@contextmanager
def agent(folder: Path, port: int, *options: str, key: str = KEY) -> Iterator[Agent]:  # noqa: F811
    started = Agent(folder, port, *options, key=key)
    try:
        yield started
    finally:
        started.end()


def settings(folder: Path, port: int | None) -> EngineConfig:  # noqa: F811
    """port: where another machine joins; None: this one has all instances."""
    nodes = {} if port is None else {"nnodes": 2, "master": f"127.0.0.1:{port}", "fleet_key": KEY}
    return EngineConfig(
        model=str(folder), instances=INSTANCES, dtype="float32", threads_per_device=1, kv_tokens=2000,
        worker_timeout_s=60.0, policy="elastic_fcfs", min_tokens_per_instance=8, **nodes,  # type: ignore[arg-type]  # of several types
    )  # fmt: skip


@asynccontextmanager
async def engine(config: EngineConfig) -> AsyncIterator[AsyncLLM]:
    running = await start_engine(config)
    try:
        yield running
    finally:
        await running.close()


def test_a_node_is_lost_and_returns_and_leaves(folder: Path) -> None:  # noqa: F811
    """Requests span both machines, and get the tokens that one machine gives: undisturbed, while the other is killed,
    after its return, and while it is told to stop. At the end nothing is left of it."""
    port = free_port()

    async def run() -> None:
        async with engine(settings(folder, None)) as alone:
            expected = await Streams(alone, "alone").end()
        with agent(folder, port) as first:
            async with engine(settings(folder, port)) as running:
                assert [report.node for report in running.instances()] == [0, 0, 1]
                assert await Streams(running, "undisturbed").end() == expected
                streams = Streams(running, "disturbed")
                await streams.have([5] * len(LENGTHS))
                pids = running.instances()[AWAY].pids
                first.end()
                assert await streams.end() == expected
                assert running.stats().num_losses == 1 and "node 1" in running.instances()[AWAY].why
                await asyncio.to_thread(wait_for, lambda: all(map(has_ended, pids)))
                with agent(folder, port) as second:
                    await has_restarted(running, AWAY, 1)
                    streams = Streams(running, "with the second")
                    await streams.have([5] * len(LENGTHS))
                    assert running.stats().kv_tokens_used_by_instance[AWAY] > 0
                    second.process.send_signal(signal.SIGTERM)
                    assert await streams.end() == expected
                    assert await asyncio.to_thread(second.process.wait, WITHIN_S) == 0
                    assert running.instances()[AWAY].state == "removed" and running.stats().num_losses == 1
                    with agent(folder, port) as third:
                        await has_restarted(running, AWAY, 2)
                        assert await Streams(running, "with the third").end() == expected
                        await running.close()
                        assert await asyncio.to_thread(third.process.wait, WITHIN_S) == 0
                        assert "the engine has ended" in "".join(third.lines)

    asyncio.run(run())


def has_ended(pid: int) -> bool:
    """An orphan may be a zombie until the system's first process looks after it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
