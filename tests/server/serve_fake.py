"""`longspan serve` around the fake engine, for tests that need a process: python -m ... PORT MODE [SETTINGS].

SETTINGS: more of ServerConfig, as JSON.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from dataclasses import replace
from pathlib import Path

from longspan.config import EngineConfig
from longspan.engine.protocol import EngineClient
from longspan.entrypoints.serve import serve
from longspan.entrypoints.server_config import ServerConfig
from longspan.entrypoints.welcome import print_welcome
from longspan.errors import EngineDeadError, LongspanError
from longspan.outputs import EngineStats
from tests.server.fake_engine import FakeEngine


class Engine(FakeEngine):
    """Holds its answer after two tokens. In mode `finish` goes on, draining, once /metrics is read; in mode `die` and
    `die_slowly` it dies then."""

    mode = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.scraped = asyncio.Event()

    async def drain(self, timeout_s: float) -> None:
        self.draining = True
        await asyncio.sleep(0.3)  # a server that stopped listening too early has by now
        print("draining", flush=True)
        if self.mode == "finish":
            await self.scraped.wait()
            self.hold_after = None
            self.gate.set()
        await super().drain(timeout_s)

    def stats(self) -> EngineStats:
        self.scraped.set()
        if self.mode.startswith("die") and self.error is None:
            self.fail_after = (2, EngineDeadError("worker 1 is gone"), None)
            self.die("worker 1 is gone")
            self.hold_after = None
            self.gate.set()
        return super().stats()

    async def close(self) -> None:
        await super().close()
        print("closed", flush=True)


async def start(config: EngineConfig) -> EngineClient:
    engine = Engine(replace(config, max_waiting=64))
    engine.mode = sys.argv[2]
    engine.hold_after = 2
    match engine.mode:
        case "never":
            print("starting", flush=True)
            await asyncio.Event().wait()
        case "bug":
            raise ZeroDivisionError("first line\nsecond line")
    return engine


def announce(engine: EngineClient, url: str) -> None:
    print(f"not to be collected: {gc.get_freeze_count()}")
    print_welcome(engine, url)


def main() -> int:
    linger_s = 600.0 if sys.argv[2] == "die_slowly" else 0.0
    more = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
    more |= {name: Path(value) for name, value in more.items() if name.endswith("file")}
    settings = ServerConfig(port=int(sys.argv[1]), drain_timeout_s=30, dead_linger_s=linger_s, **more)
    try:
        return serve(EngineConfig(), settings, start_engine=start, announce=announce)
    except LongspanError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
