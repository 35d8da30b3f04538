"""Runs a client program beside these files, as its users would, and gives what it printed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
PYTHON = str(HERE / ".venv" / "bin" / "python")
FRAMEWORKS = str(HERE / ".venv-frameworks" / "bin" / "python")  # with an older SDK of OpenAI's
GUIDELLM = str(HERE / ".venv-guidellm" / "bin" / "guidellm")
AIPERF = str(HERE / ".venv-aiperf" / "bin" / "aiperf")
GENAI_BENCH = str(HERE / ".venv-genai-bench" / "bin" / "genai-bench")
NODE = str(HERE / "node_modules" / ".bin" / "node")


def run(*command: str, **variables: str) -> str:
    """Run it with these environment variables besides. What it printed is printed again, for `pytest -rP` to show."""
    done = subprocess.run(
        command, cwd=HERE, capture_output=True, text=True, timeout=600, env={**os.environ, **variables}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    return done.stdout
