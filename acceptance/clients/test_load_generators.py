"""Load generators of others: every request that they send is answered, and with as many tokens as they asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from acceptance.clients.programs import AIPERF, GENAI_BENCH, GUIDELLM, run
from tests.e2e.conftest import Server

MODEL, REQUESTS = "smollm2-135m", 8


def test_guidellm(server: Server, tokenizer: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    run(
        GUIDELLM, "run", "--backend", f"kind=openai_http,target={server.url},model={MODEL}",
        "--profile", "kind=concurrent,streams=2", "--constraint", f"kind=max_requests,count={REQUESTS}",
        "--tokenizer", f"kind=huggingface_auto,model={tokenizer}",
        "--data", "kind=synthetic_text,prompt_tokens=32,output_tokens=8", "--output", f"kind=json,path={out}",
    )  # fmt: skip
    (benchmark,) = json.loads(out.read_text())["benchmarks"]
    assert len(benchmark["requests"]["successful"]) == REQUESTS and not benchmark["requests"]["errored"]
    server.wait_until_free()


@pytest.mark.parametrize("endpoint", ["chat", "completions", "responses"])
def test_aiperf(server: Server, tokenizer: Path, tmp_path: Path, endpoint: str) -> None:
    run(
        AIPERF, "profile", "--model", MODEL, "--url", server.url, "--endpoint-type", endpoint, "--streaming",
        "--tokenizer", str(tokenizer), "--concurrency", "2", "--request-count", str(REQUESTS),
        "--synthetic-input-tokens-mean", "32", "--output-tokens-mean", "8", "--ui", "none",
        "--artifact-dir", str(tmp_path / "out"),
    )  # fmt: skip
    records = [json.loads(line) for line in (tmp_path / "out" / "profile_export.jsonl").read_text().splitlines()]
    assert len(records) == REQUESTS and not any(record.get("error") for record in records)
    server.wait_until_free()


def test_genai_bench(server: Server, tokenizer: Path, tmp_path: Path) -> None:
    run(
        GENAI_BENCH, "benchmark", "--api-backend", "vllm", "--api-base", server.url, "--api-key", "none",
        "--api-model-name", MODEL, "--model-tokenizer", str(tokenizer), "--task", "text-to-text",
        "--traffic-scenario", "D(32,8)", "--num-concurrency", "2", "--max-time-per-run", "2",
        "--max-requests-per-run", str(REQUESTS), "--experiment-base-dir", str(tmp_path),
    )  # fmt: skip
    found = [json.loads(path.read_text()) for path in tmp_path.rglob("*.json")]
    (totals,) = [one["aggregated_metrics"] for one in found if "aggregated_metrics" in one]
    assert totals["num_completed_requests"] >= REQUESTS and totals["num_error_requests"] == 0
    server.wait_until_free()
