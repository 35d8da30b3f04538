"""`longspan bench serve` as a user starts it, against the real server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.e2e.conftest import Server


def test_long_and_short_prompts_on_the_real_server(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    options = ("--input-len", "16:600", "--output-len", "4", "--rate", "4", "--num-requests", "8")
    command = [sys.executable, "-m", "longspan", "bench", "serve", "--url", server.url, *options]
    done = subprocess.run(
        [*command, "--long-threshold", "300", "--slo", "ttft=120", "--json", str(out)],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "8 of 8 requests finished" in done.stdout and "within the SLO: 100.0 %" in done.stdout
    results = json.loads(out.read_text())
    assert [r["num_output_tokens"] for r in results["requests"]] == [4] * 8
    assert all(16 <= r["num_prompt_tokens"] <= 600 for r in results["requests"])  # as the server counted them
    assert set(results["from_schedule"]["classes"]) == {"all", "short", "long"}
    server.wait_until_free()
