"""What the server spends on an ordinary request beside the model: CPU time of its process, before and after.

Both servers run around an engine that answers at once (edge_server.py): the one of a commit before bodies, texts and
connections were bounded, and the one of this working tree. The same requests go to both in turns, over one kept
connection each; what is counted is the time that the server's threads have run, as the kernel tells it.

    python -m benchmarks.robustness.edge_cost [--before 68f1b9d] [--rounds 15]
"""

from __future__ import annotations

import gzip
import http.client
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.common import arguments, interleaved, paired_ratio, save, say, summary

ROOT = Path(__file__).parent.parent.parent
SERVER = Path(__file__).parent / "edge_server.py"
TEXT = ROOT / "tests" / "data" / "moby_dick.txt.gz"
LONG_CHARS = 17_500  # of English, about 4,000 tokens
REQUESTS = {"short chat": 200, "4k-token prompt": 40, "4k token ids": 100}  # in a round


@dataclass
class Edge:
    """A running server."""

    pid: int
    connection: http.client.HTTPConnection

    def cpu_s(self) -> float:
        """Seconds that its threads have run; none of them ends meanwhile."""
        stats = (path.read_text() for path in Path(f"/proc/{self.pid}/task").glob("*/schedstat"))
        return sum(int(stat.split()[0]) for stat in stats) / 1e9

    def ask(self, path: str, body: bytes) -> dict[str, Any]:
        self.connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = self.connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise RuntimeError(content.decode())
        found: dict[str, Any] = json.loads(content)
        return found

    def cost_s(self, path: str, body: bytes, times: int) -> float:
        """CPU seconds of one request."""
        begin = self.cpu_s()
        for _ in range(times):
            self.ask(path, body)
        return (self.cpu_s() - begin) / times


@contextmanager
def edge(source: Path, model: str) -> Iterator[Edge]:
    environment = os.environ | {"PYTHONPATH": str(source)}
    process = subprocess.Popen(
        [sys.executable, str(SERVER), model],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        url = urlsplit(process.stdout.readline().strip())
        if url.hostname is None:
            raise RuntimeError(f"the server of {source.parent.name} did not start")
        yield Edge(process.pid, http.client.HTTPConnection(url.hostname, url.port))
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def source_of(commit: str) -> Iterator[Path]:
    """The `src` folder of a commit."""
    with tempfile.TemporaryDirectory(prefix="edge-cost-") as folder:
        command = ["git", "-C", str(ROOT), "archive", commit, "src"]
        packed = subprocess.run(command, capture_output=True, check=True).stdout
        with tarfile.open(fileobj=BytesIO(packed)) as archive:
            archive.extractall(folder, filter="data")
        yield Path(folder) / "src"


def requests(model: str) -> dict[str, tuple[str, bytes]]:
    text = gzip.decompress(TEXT.read_bytes()).decode()[5000:]
    chat = {
        "model": model, "temperature": 0.7, "max_tokens": 64,
        "messages": [{"role": "system", "content": "You are a helpful assistant."},
                     {"role": "user", "content": "What is the capital of France?"},
                     {"role": "assistant", "content": "Paris."},
                     {"role": "user", "content": "And how many people live there, roughly, in the whole region?"}],
    }  # fmt: skip
    prompt = {"model": model, "temperature": 0, "max_tokens": 64}
    ids = [(7919 * place) % 49_000 for place in range(4000)]
    return {
        "short chat": ("/v1/chat/completions", json.dumps(chat).encode()),
        "4k-token prompt": ("/v1/completions", json.dumps(prompt | {"prompt": text[:LONG_CHARS]}).encode()),
        "4k token ids": ("/v1/completions", json.dumps(prompt | {"prompt": ids}).encode()),
    }


def main() -> None:
    options = arguments(
        __doc__ or "",
        [("model", "smollm2-135m", "model"), ("before", "68f1b9d", "commit"), ("rounds", 15, "rounds"),
         ("name", "edge_cost", "result")],
    )  # fmt: skip
    results: dict[str, Any] = {"model": options.model, "before": options.before}
    with ExitStack() as stack:
        before = stack.enter_context(edge(stack.enter_context(source_of(options.before)), options.model))
        after = stack.enter_context(edge(ROOT / "src", options.model))
        for name, (path, body) in requests(options.model).items():
            tokens = {side.ask(path, body)["usage"]["prompt_tokens"] for side in (before, after)}
            assert len(tokens) == 1, tokens
            times = REQUESTS[name]
            seconds = interleaved(
                {
                    "before": lambda _, p=path, b=body, t=times: before.cost_s(p, b, t),
                    "after": lambda _, p=path, b=body, t=times: after.cost_s(p, b, t),
                },
                options.rounds,
            )
            ms = {side: summary([1000 * one for one in all_of_them]) for side, all_of_them in seconds.items()}
            ratio = paired_ratio(seconds["after"], seconds["before"])
            results[name] = {"prompt_tokens": tokens.pop(), "cpu_ms": ms, "after_over_before": ratio}
            medians = {side: ms[side]["median"] for side in ms}
            say(f"{name}: {medians['before']:.3f} ms of CPU before, {medians['after']:.3f} after ({ratio:.2f})")
    save(options.name, results)


if __name__ == "__main__":
    main()
