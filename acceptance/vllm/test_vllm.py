"""The scheduler class inside vLLM's CPU build, which `make test-vllm` installs for itself.

Checks run as processes of vLLM's Python (in_vllm.py), for it has its own torch; here it is judged what they find.
"""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from math import inf
from pathlib import Path
from typing import Any

import pytest

from benchmarks.http_server import serving
from longspan.metrics.event_log import EventLog
from longspan.metrics.explain import explain
from longspan.metrics.request_list import list_requests
from tests.e2e.conftest import wait_for

FOLDER = Path(__file__).parent
SOURCE = FOLDER.parents[1] / "src"
PYTHON = os.environ.get("LONGSPAN_TEST_VLLM_PYTHON", str(FOLDER / ".venv/bin/python"))
MOST_S = 900.0
MANY = 2000
NOTHING_LEFT = {"blocks": 0, "requests": 0, "running": 0, "waiting": 0, "known": 0}
MOST_TO_DECIDE_S, MOST_OF_A_STEP = 1e-3, 1 / 3
"""Or so much of what a step takes vLLM itself, where that is more: a slow machine is slow at both."""


def in_vllm(check: str, **options: Any) -> dict[str, Any]:
    """What a check has found."""
    command = [PYTHON, str(FOLDER / "in_vllm.py"), check, json.dumps(options)]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=MOST_S, env=environment)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The default model as safetensors."""
    from benchmarks.peers.export_safetensors import main

    folder = str(tmp_path_factory.mktemp("model"))
    main(folder)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of two small layers, with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = str(tmp_path_factory.mktemp("tiny"))
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(
        vocab_size=1000, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=2048,
    )).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.mark.timeout(3 * MOST_S)
@pytest.mark.parametrize("speculative", [False, True])
def test_tokens_are_the_same_as_without_the_class(model: str, speculative: bool) -> None:
    """In fp32 and greedily: with shared prefixes, grammars and aborts, and with drafts."""
    without, ours = (in_vllm("tokens", model=model, is_ours=is_ours, speculative=speculative) for is_ours in (0, 1))
    theirs, mine = without.pop("tokens"), ours.pop("tokens")
    gone = {*without.pop("gone"), *ours.pop("gone")}
    assert ours == {**NOTHING_LEFT, "decided": True}
    assert mine.keys() == theirs.keys() and 0 < len(gone) < len(mine) / 4
    for name, tokens in theirs.items():
        common = min(len(tokens), len(mine[name])) if name in gone else len(tokens)  # one may have come further
        assert mine[name][:common] == tokens[:common] and (common or name in gone)
        assert name in gone or len(mine[name]) == len(tokens)


@pytest.mark.timeout(3 * MOST_S)
def test_a_storm_of_aborts_leaves_nothing_behind(tiny: str, tmp_path: Path) -> None:
    """With memory for a few; and the event log of it tells everybody's story."""
    log = tmp_path / "events.jsonl"
    found = in_vllm("storm", model=tiny, is_ours=True, many=MANY, aborts=0.6, log=str(log))
    assert found["aborted"] >= 0.3 * MANY and found["preemptions"]
    assert found["short"] == {} and found["decided"]
    assert {name: found[name] for name in NOTHING_LEFT} == NOTHING_LEFT
    listed = list(list_requests(EventLog(log)))
    assert len(listed) == MANY
    longest = max(listed, key=lambda one: one.longest_wait_s)
    story = "\n".join(explain(log, longest.request_id).lines())
    assert "waits" in story and "ends" in story


@pytest.mark.timeout(3 * MOST_S)
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("seed", [1, 2])
def test_steps_may_be_made_while_others_run(tiny: str, is_async: bool, seed: int) -> None:
    """vLLM's own schedulers, with the one name for both; the CPU build itself never makes one step during another."""
    found = in_vllm("pipelined", model=tiny, is_async=is_async, many=MANY, aborts=0.4, seed=seed)
    assert found["class"] == ("AsyncLongspanScheduler" if is_async else "LongspanScheduler")
    assert found["aborted"] >= 0.3 * MANY and found["preemptions"]
    assert found["short"] == {} and found["decided"]
    assert {name: found[name] for name in NOTHING_LEFT} == NOTHING_LEFT


def test_who_waited_for_its_grammar_and_then_for_memory_is_not_forgotten(tiny: str) -> None:
    found = in_vllm("held_up", model=tiny)
    assert found["served"] and found["had_to_wait"]


@pytest.mark.timeout(3 * MOST_S)
@pytest.mark.parametrize("seats", [256, 264])
def test_deciding_takes_less_than_a_millisecond(tiny: str, seats: int) -> None:
    """Of the thread's CPU time, beside vLLM's own: 256 requests run, 1,000 wait, with and without seats for them.

    In turns, at most eight, the least of each: neighbours on a shared machine make the same work dearer, never cheaper.
    """
    at = {"model": tiny, "running": 256, "waiting": 1000, "seats": seats}
    with_s = without_s = inf
    for _ in range(8):
        ours, theirs = (in_vllm("deciding", is_ours=is_ours, **at) for is_ours in (True, False))
        assert ours["decided"] and ours["waiting"] >= 900
        with_s, without_s = min(with_s, ours["median"]), min(without_s, theirs["median"])
        print(f"a step takes {1e3 * with_s:.2f} ms, and without the class {1e3 * without_s:.2f} ms")
        if with_s - without_s < max(MOST_TO_DECIDE_S, MOST_OF_A_STEP * without_s):
            return
    raise AssertionError(f"deciding takes {1e3 * (with_s - without_s):.2f} ms")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}}, "KV connectors"),
        ({"enable_chunked_prefill": False, "max_num_batched_tokens": 512}, "chunked prefill turned off"),
        ({"additional_config": {"longspan": {"tpot": 1}}}, "longspan has tpot, but may have objective"),
        ({"additional_config": {"longspan": {"policy": {"aim": 3}}}}, "aim is 3"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(tiny: str, options: dict[str, Any], said: str) -> None:
    assert said in in_vllm("refused", model=tiny, **options)["error"]


@pytest.mark.timeout(MOST_S)
def test_a_server_takes_the_class_by_its_name_and_targets_by_request(model: str, tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    command = [
        PYTHON, str(FOLDER.parents[1] / "benchmarks/peers/vllm_server.py"), model, "--max-model-len", "2048",
        "--enforce-eager", "--served-model-name", "m", "--scheduler-cls",
        "longspan.integrations.vllm.LongspanScheduler", "--additional-config",
        json.dumps({"longspan": {"event_log": str(log)}}),
    ]  # fmt: skip
    environment = {"PYTHONPATH": str(SOURCE), "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with serving(command, tmp_path / "log", environment) as server:
        body = {"model": "m", "prompt": "Once upon a time", "max_tokens": 4, "temperature": 0,
                "vllm_xargs": {"ttft_slo_ms": 250, "tpot_slo_ms": 80}}  # fmt: skip
        request = urllib.request.Request(
            f"{server.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=MOST_S) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] == 4
        wait_for(lambda: any(one.end == "length" for one in list_requests(EventLog(log))))
    (told,) = list_requests(EventLog(log))
    service = explain(log, told.request_id).arrived.service
    assert (service.ttft_s, service.tpot_s) == (0.25, 0.08)
