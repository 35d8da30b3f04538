"""What the tests cost, and what they leave behind: told at the end of every run.

A test costs the CPU seconds, and the seconds, from its set-up to the end of its tear-down; a process counts with the
test that waits for its end. A run fails if a process that it started is still there at its end. (Memory that processes
share goes with them.)
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

SLOWEST = 15
END_S = 60.0
"""For processes that are ending when the run does."""
MARK = "LONGSPAN_TEST_RUN"
"""An environment variable that all processes of a run have, with a value that no others have."""


@dataclass
class Cost:
    cpu_s: float = 0.0
    wall_s: float = 0.0


class Costs:
    """A pytest plugin; on the workers of pytest-xdist, its other half."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.tests: dict[str, Cost] = {}
        self.left: list[str] = []
        self.cpu_s = 0.0
        """Of all processes, imports and collection included."""
        self._begun = Cost()
        self.is_worker = hasattr(config, "workerinput")
        if not self.is_worker:
            os.environ[MARK] = f"{os.getpid()}-{time.time_ns()}"

    # -- what a test costs ----------------------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._begun = now()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, call: pytest.CallInfo[None]) -> Iterator[None]:
        report = yield
        if call.when == "teardown":
            ended = now()
            report.cost = (ended.cpu_s - self._begun.cpu_s, ended.wall_s - self._begun.wall_s)
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if hasattr(report, "cost"):
            self.tests[report.nodeid] = Cost(*report.cost)

    # -- the end --------------------------------------------------------------------------------------------------

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object) -> None:
        self.cpu_s += getattr(node, "workeroutput", {}).get("cpu_s", 0.0)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        if self.is_worker:
            self.config.workeroutput["cpu_s"] = now().cpu_s  # type: ignore[attr-defined]

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        tell = terminalreporter.write_line
        own = os.times()
        self.cpu_s += own.user + own.system + (0.0 if self.cpu_s else own.children_user + own.children_system)
        slowest = sorted(self.tests.items(), key=lambda test: -test[1].cpu_s)[:SLOWEST]
        if len(self.tests) > SLOWEST:
            tell(f"\n{len(self.tests)} tests took {self.cpu_s:.0f} s of CPU time. The most:")
            for name, cost in slowest:
                tell(f"{cost.cpu_s:7.1f} s of CPU in {cost.wall_s:6.1f} s  {name}")
        for what in self.left:
            terminalreporter.write_line(f"LEFT BEHIND: {what}", red=True)
        if path := self.config.option.costs:
            Path(path).write_text(json.dumps({name: asdict(cost) for name, cost in self.tests.items()}, indent=0))


class Leftovers:
    """A pytest plugin of the process that the run began with: nothing may be left when all its workers have ended."""

    def __init__(self, costs: Costs) -> None:
        self.costs = costs

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Iterator[None]:
        yield
        if sys.platform == "linux":
            wait_until(lambda: not processes_of_run())
            self.costs.left = processes_of_run()
        if self.costs.left:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def now() -> Cost:
    times = os.times()
    return Cost(times.user + times.system + times.children_user + times.children_system, time.monotonic())


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + END_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)


def processes_of_run() -> list[str]:
    """Other processes that this run started and that have not ended, by number and command line.

    The helper that multiprocessing keeps beside a program that starts processes ends with the program.
    """
    mark = f"{MARK}={os.environ[MARK]}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if int(process.name) == os.getpid() or mark not in (process / "environ").read_bytes().split(b"\0"):
                continue
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and "multiprocessing.resource_tracker" in command:
                continue
        except OSError:
            continue  # it has ended, or is another user's
        if "multiprocessing.resource_tracker" in command:
            continue  # Python's own: it ends with whom it serves
        found.append(f"process {process.name}: {command[:300]}")
    return found
