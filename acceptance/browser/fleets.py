"""Fleets to look at: a real server under load, and the log of a simulated one."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

ROOT = Path(__file__).parents[2]


@contextmanager
def command(*arguments: str, says: str) -> Iterator[str]:
    """Run `longspan` until it says where it is; yields that."""
    started = subprocess.Popen(
        [sys.executable, "-m", "longspan", *arguments], cwd=ROOT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        assert started.stdout is not None
        lines: list[str] = []
        for line in started.stdout:
            lines.append(line)
            if found := re.search(says, line):
                break
        else:
            raise AssertionError("".join(lines))
        reader = threading.Thread(target=started.stdout.read, daemon=True)
        reader.start()
        yield found[1]
    finally:
        started.terminate()
        try:
            started.wait(30)
        except subprocess.TimeoutExpired:
            started.kill()


@contextmanager
def served(folder: Path, *more: str) -> Iterator[str]:
    """A real server with a tiny model; its URL."""
    settings = ["--instances", "3", "--executor", "inproc", "--dtype", "float32", "--threads-per-device", "1",
                "--kv-tokens", "1500", "--overload", "off", "--port", "0"]  # fmt: skip
    with command("serve", str(folder), *settings, *more, says=r"serves .* at (http://\S+)/v1") as url:
        yield url


@contextmanager
def load(url: str, clients: int = 24, rounds: int = 40) -> Iterator[threading.Event]:
    """Clients that ask one after the other, until the block ends or the event is set."""
    done = threading.Event()

    def ask(number: int) -> None:
        with httpx2.Client(base_url=url, timeout=120, trust_env=False) as http:
            for turn in range(rounds):
                if done.is_set():
                    return
                prompt = [5 + number % 3] * (40 + 90 * ((number + turn) % 5) + (1400 if number % 8 == 0 else 0))
                body = {"prompt": prompt, "max_tokens": 60 + 20 * (number % 5), "ignore_eos": True}
                http.post("/v1/completions", json=body, headers={"x-request-id": f"client-{number}-{turn}"})

    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield done
    finally:
        done.set()
        for thread in threads:
            thread.join(120)


def simulated(path: Path) -> Path:
    """The event log of a simulated fleet of four instances, whose prompts have up to some 200,000 tokens."""
    arguments = [
        "simulate", "--trace", "tests/data/loongserve_mixed_200.csv.gz", "--rate", "0.3", "--hardware", "a800-80g",
        "--model", "lwm-1m", "--instances", "4", "--tp", "2", "--event-log", str(path),
    ]  # fmt: skip
    subprocess.run([sys.executable, "-m", "longspan", *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return path
