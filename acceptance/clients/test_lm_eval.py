"""lm-eval's harness, with tasks of our own: it reads the likelihood of given answers, and lets the model write some.

It knows no tokenizer of the model's, and asks the server for what it needs of one.
"""

from __future__ import annotations

import json
from pathlib import Path

from acceptance.clients.programs import FRAMEWORKS, run
from acceptance.clients.tasks import write_tasks
from tests.e2e.conftest import Server


def test_lm_eval(server: Server, tmp_path: Path) -> None:
    write_tasks(tmp_path)
    arguments = f"model=smollm2-135m,base_url={server.url}/v1/completions,num_concurrent=3,max_length=8192"
    out = run(
        FRAMEWORKS, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args", arguments,
        "--tasks", "capitals,needle", "--include_path", str(tmp_path), "--output_path", str(tmp_path / "out"),
        HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_HOME=str(tmp_path / "home"),
    )  # fmt: skip
    assert "|capitals" in out and "|needle" in out
    (path,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(path.read_text())["results"]
    assert results["capitals"]["acc,none"] > 0.6  # one in four by chance
    assert results["needle"]["exact_match,number"] > 0.6
    server.wait_until_free()
