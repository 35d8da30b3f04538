"""`longspan simulate`, as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from longspan.entrypoints.cli import run
from longspan.sib import write_sib
from longspan.simulator.hardware import A800_80G

from .examples import TALK_TOKENS, TALKS, talks_in_turn
from .test_calibration import profiled

ARGUMENTS = [
    "simulate", "--workload", "medha_mix", "--rate", "1", "--num-requests", "40", "--max-total-tokens", "20000",
    "--instances", "2",
]  # fmt: skip


def test_the_same_arguments_give_the_same_bytes_in_any_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / "here.json", tmp_path / "there.json"]
    assert run([*ARGUMENTS, "--json", str(files[0])]) == 0
    table = capsys.readouterr().out
    command = [sys.executable, "-m", "longspan", *ARGUMENTS, "--json", str(files[1])]
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    there = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert there.returncode == 0
    assert files[0].read_bytes() == files[1].read_bytes()
    assert there.stdout == table
    assert run([*ARGUMENTS, "--seed", "1", "--json", str(files[1])]) == 0
    assert files[0].read_bytes() != files[1].read_bytes()


def test_what_the_results_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*ARGUMENTS, "--json", str(tmp_path / "r.json"), "--event-log", str(tmp_path / "log")]) == 0
    table = capsys.readouterr().out
    for words in ("lwm-1m on 2 x 1 a800-80g", "40 of 40 requests", "offered load", "TTFT", "queueing", "the SLO:"):
        assert words in table
    result = json.loads((tmp_path / "r.json").read_text())
    assert len(result["requests"]) == 40
    assert set(result["metrics"]["classes"]) == {"all", "short", "long"}
    assert 0 < result["offered_load"] < 1
    assert all(0 < instance["busy_share"] <= 1 for instance in result["instances"])
    assert all(0 < instance["kv_mean_share"] <= instance["kv_peak_share"] <= 1 for instance in result["instances"])
    assert run(["replay", str(tmp_path / "log")]) == 0


OVERLOADED = [
    "simulate", "--workload", "medha_mix", "--rate", "20", "--num-requests", "200", "--max-total-tokens", "20000",
    "--instances", "2", "--policy", "longspan:promise_factor=1:promise_floor_s=0.001",
]  # fmt: skip
"""More than two instances can serve, and a promise that can be kept to few."""


def test_who_would_be_late_is_refused_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "r.json"
    overloaded = [*OVERLOADED, "--json", str(file)]
    assert run(overloaded) == 0
    result = json.loads(file.read_text())
    late = sum(request["refusal"] == "late" for request in result["requests"])
    assert 0 < late == result["metrics"]["classes"]["all"]["num_refused"] < 200
    assert f"{late} refused, {late} of them since they would be late" in capsys.readouterr().out
    for overload in ("warn", "off"):
        assert run([*overloaded, "--overload", overload]) == 0
        assert all(request["refusal"] is None for request in json.loads(file.read_text())["requests"])
        assert "refused" not in capsys.readouterr().out


def test_a_model_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 32, "hidden_size": 4096,
        "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 32768, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    rest = ["simulate", "--num-requests", "5", "--json", str(tmp_path / "r.json"), "--model"]
    shapes = []
    for model in (str(tmp_path), str(tmp_path / "config.json"), "llama-3-8b"):
        assert run([*rest, model]) == 0
        shapes.append(json.loads((tmp_path / "r.json").read_text())["fleet"]["model"]["shape"])
    assert shapes[0] == shapes[1] == shapes[2]


def test_this_machine_from_its_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its memory is not in the file, so the KV slots must be given."""
    write_sib(profiled(A800_80G), tmp_path / "sib.json")
    arguments = ["simulate", "--hardware", f"sib:{tmp_path / 'sib.json'}", "--instances", "3", "--num-requests", "5"]
    assert run([*arguments, "--kv-tokens", "9000"]) == 0
    assert "smollm2-135m on 3 x 1 sib:sib.json, 9,000 KV slots" in capsys.readouterr().out
    assert run(arguments) == 2
    assert "give the KV slots of an instance" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tp", "3"], "tp is 3, but must divide"),
        (["--model", "llama-3-70b"], "does not fit"),
        (["--hardware", "abacus"], "there is no hardware 'abacus'"),
        (["--model", "abacus"], "there is no model 'abacus'"),
        (["--policy", "abacus"], "there is no policy 'abacus'"),
        (["--kv-tokens", "99999999"], "has memory for"),
        (["--hardware", "sib:/nowhere/sib.json"], "sib.json cannot be read"),
        (["--slo", "ttft"], "slo is 'ttft'"),
        (["--json", "/nowhere/at/all.json"], "there is no folder"),
        (["--rate", "0"], "rate is 0"),
    ],
)
def test_what_cannot_be_gets_one_line_and_code_2(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["simulate", "--num-requests", "2", *options]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_malformed_row_is_named_by_line_and_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrived_at_s,num_prefill_tokens,num_decode_tokens\n0,10,10\n1,ten,10\n")
    assert run(["simulate", "--trace", str(trace)]) == 1
    assert "trace.csv, line 3, column num_prefill_tokens: 'ten'" in capsys.readouterr().err


def test_nothing_finished_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", "--num-requests", "2", "--max-model-len", "10"]) == 1
    assert "0 of 2 requests finished" in capsys.readouterr().out


def test_pictures(tmp_path: Path) -> None:
    assert run([*ARGUMENTS, "--plot", str(tmp_path / "pictures")]) == 0
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["groups.png", "kv.png", "latencies.png"]


def test_pictures_need_matplotlib(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run([*ARGUMENTS, "--plot", str(tmp_path / "pictures")]) == 2
    assert "pip install matplotlib" in capsys.readouterr().err


@pytest.mark.parametrize("kept", [True, False])
def test_what_pools_of_other_sizes_would_find_is_told(
    kept: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Talks that take turns: a pool that keeps what was used last finds all of them again, or none."""
    trace, file = talks_in_turn(tmp_path / "trace.jsonl"), tmp_path / "r.json"
    options = [] if kept else ["--no-prefix-cache"]
    kv_tokens = TALKS * TALK_TOKENS // 2 + 1000  # half as many as all talks take, and a bit
    command = ["simulate", "--trace", str(trace), "--instances", "1", "--kv-tokens", str(kv_tokens)]
    assert run([*command, "--json", str(file), *options]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    found = 0.75 * (1 - 16 / TALK_TOKENS)  # three of four turns, but for each prompt's last block
    told = (
        "a pool that keeps what was used last finds 0.0% with these KV slots, "
        f"with 0.5 times 0.0%, 2 times {found:.1%}, 4 times {found:.1%}"
    )
    assert (told in printed) is kept
    prefixes = json.loads(file.read_text()).get("prefixes")
    if not kept:
        assert prefixes is None and "a pool that" not in printed
        return
    rates = {pool["times"]: pool["hit_rate"] for pool in prefixes["pools"]}
    assert rates == pytest.approx({0.5: 0.0, 1.0: 0.0, 2.0: found, 4.0: found})


@pytest.mark.parametrize(("block", "found"), [(16, 5104), (48, 5088), (700, 4900)])
def test_blocks_that_are_no_part_of_the_traces_are_told(
    block: int, found: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of three of four turns all is found but the last block, whatever the trace's ids stand for."""
    trace, file = talks_in_turn(tmp_path / "trace.jsonl"), tmp_path / "r.json"
    command = ["simulate", "--trace", str(trace), "--instances", "1", "--kv-tokens", "100000", "--json", str(file)]
    assert run([*command, "--prefix-block", str(block)]) == 0
    told = f"in whole blocks of {block} (the trace tells 512 at a time"
    assert (told in " ".join(capsys.readouterr().out.split())) is (block != 16)
    prefixes = json.loads(file.read_text())["prefixes"]
    rates = [prefixes["hit_rate"], prefixes["best_hit_rate"], prefixes["pools"][1]["hit_rate"]]
    assert rates == pytest.approx([0.75 * found / TALK_TOKENS] * 3)


def test_of_a_trace_that_tells_no_prefixes_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(ARGUMENTS) == 0
    assert "a pool that keeps" not in capsys.readouterr().out
