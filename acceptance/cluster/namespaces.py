"""Machines that are none: network namespaces, and a cable between two of them. Linux, as root."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_NUMBERS = itertools.count()


@dataclass(frozen=True)
class Machine:
    """One network namespace: its name, its end of the cable, its address there."""

    name: str
    cable: str
    address: str

    def command(self, *command: str) -> list[str]:
        return ["ip", "netns", "exec", self.name, *command]

    def run(self, *command: str) -> str:
        return run(*self.command(*command))

    def processes(self) -> list[int]:
        return [int(pid) for pid in run("ip", "netns", "pids", self.name).split()]

    def running(self, *names: str) -> list[int]:
        """Processes whose command lines have one of these names in them."""
        return [pid for pid in self.processes() if any(name in _command_line(pid) for name in names)]

    def cut(self) -> None:
        """Pull the cable: nothing comes or goes any more, and nobody is told."""
        self.run("ip", "link", "set", self.cable, "down")

    def plug(self) -> None:
        self.run("ip", "link", "set", self.cable, "up")


@contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """With names of their own, so that runs at the same time do not meet; gone afterwards."""
    tag = f"{os.getpid() % 100_000}-{next(_NUMBERS)}"
    one, other = (Machine(f"longspan-{tag}-{end}", f"ls{tag}{end}", f"10.231.7.{number}")
                  for number, end in enumerate("ab", start=1))  # fmt: skip
    try:
        for machine in (one, other):
            run("ip", "netns", "add", machine.name)
        run("ip", "link", "add", one.cable, "netns", one.name, "type", "veth",
            "peer", "name", other.cable, "netns", other.name)  # fmt: skip
        for machine in (one, other):
            machine.run("ip", "address", "add", f"{machine.address}/24", "dev", machine.cable)
            machine.run("ip", "link", "set", "lo", "up")
            machine.plug()
        yield one, other
    finally:
        for machine in (one, other):
            subprocess.run(["ip", "netns", "delete", machine.name], stderr=subprocess.DEVNULL)


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.fail(f"{' '.join(command)}: {done.stdout}{done.stderr}", pytrace=False)
    return done.stdout


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:  # it has ended
        return ""
