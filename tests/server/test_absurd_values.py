"""Every option of every command with a value that makes no sense: a line, never a traceback, and never a long wait."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from longspan.engine import assembly
from longspan.entrypoints import cli
from longspan.entrypoints.plan import command as plan_command
from longspan.errors import LongspanError
from longspan.executor.base import Executor

VALUES = ("nan", "-1", "0", "1e308", "", "é\u202e", str(10**30), "\udcff", "x" * 5000, "inf", "/", "1e-308", "[1",
          "/dev/null/x", "1,2", "3:2", "-inf", "\x01")  # fmt: skip
NO_SERVER = ["--url", "http://127.0.0.1:9"]
TINY = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 101, "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "torch_dtype": "float32",
}  # fmt: skip
COMMANDS = {
    "serve": [".", "--port", "0"],
    "run-batch": [".", "--input-file", "in.jsonl", "--output-file", "out.jsonl"],
    "bench latency": ["."],
    "bench throughput": ["."],
    "profile": ["."],
    "bench serve": [*NO_SERVER, "--num-requests", "2"],
    "chat": NO_SERVER,
    "simulate": ["--trace", "trace.csv"],
    "plan": ["--trace", "trace.csv", "--devices", "1", "--tp", "1"],
}
LIKE_SERVE = ("run-batch", "bench latency", "bench throughput", "profile")
"""Those that start an engine, with the same options for it, read by the same code."""


class StoppedHere(LongspanError):
    """All checks are passed; what comes next takes long."""


@pytest.fixture(autouse=True)
def nothing_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run for real, in a folder with a model's configuration, up to where workers would be started."""

    def stop(*_: object) -> Executor:
        raise StoppedHere("all is well so far")

    monkeypatch.setattr(assembly, "make_executor", stop)
    monkeypatch.setattr(plan_command, "_solve_all", stop)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    (tmp_path / "in.jsonl").write_text('{"custom_id": "1", "url": "/v1/completions", "body": {}}')
    (tmp_path / "trace.csv").write_text("arrived_at_s,num_prefill_tokens,num_decode_tokens\n0,10,3\n1,60,3\n")


def options(command: str) -> list[str]:
    app = cli.app
    for name in command.split():
        app = app[name]
    names = [argument.name for argument in app.assemble_argument_collection()]
    return [name for name in names if name.startswith("--") and name != "--plot"]  # matplotlib takes seconds to load


def given(command: str, option: str, value: str) -> list[str]:
    arguments = list(COMMANDS[command])
    if option in arguments:
        del arguments[arguments.index(option) : arguments.index(option) + 2]
    return [*command.split(), *arguments, f"{option}={value}"]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_value_of_any_option_is_a_traceback(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    values: Iterator[str] = itertools.cycle(VALUES)
    known = options("serve") if command in LIKE_SERVE else []
    for option, value in zip([name for name in options(command) if name not in known], values, strict=False):
        code = cli.run(given(command, option, value))
        error = capsys.readouterr().err
        assert code in (0, 1, 2), (option, value)
        assert "Traceback" not in error and "did not start: " not in error, (option, value)
        lines = [line for line in error.splitlines() if line.startswith("longspan: ")]
        assert lines or code == 0, (option, value)


@pytest.mark.parametrize(
    "arguments",
    [
        # Each of these has been taken, or was a traceback.
        "serve . --worker-timeout-s nan", "serve . --kv-tokens 10", "serve . --max-waiting 0",
        "serve . --max-batch-tokens -1", "serve . --max-requests-per-master 0", "serve . --max-model-len 1",
        f"serve . --max-waiting {10**30}", "serve . --instances 5000", "serve . --drain-timeout-s 1e308",
        "serve . --served-model-name ''", "serve . --served-model-name 'a\x07'", "serve ''", "serve . --host é\u202e",
        "serve . --tp 5", "serve . --pp 3", "serve . --quantization gguf", "serve . --device cpu --transport nccl",
        "serve . --device cuda", "serve . --event-log no/x", "serve . --event-log .", "serve . --sib none.json",
        "serve . --policy medah", "serve . --kv-tokens 2000000000", "serve . --max-model-len 513",
        "serve . --revision v1", "serve . --rope-scaling {", 'serve . --rope-scaling {"rope_type":"yarn"}',
        "bench latency . --kv-tokens 10", "bench latency . --json .", f"bench latency . --batch-size {10**30}",
        f"bench throughput . --num-prompts {10**30}", "profile . --out no/sib.json", "profile . --plot no/x.png",
        f"bench serve --url http://127.0.0.1:9 --num-requests {10**30}", "bench serve --duration 1e9 --rate 1e6",
        "bench serve --url http://127.0.0.1:9 --model \udcff", "bench serve --plot no/x.png", "bench serve --json /",
        "simulate --max-model-len -1", "simulate --instances 2000000000", "simulate --event-log no/x",
        "simulate --plot trace.csv", "plan --kv-tokens 0 --tp 1", f"plan --devices {10**30}", "plan --json no/x",
        "chat --temperature nan",
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_anything_is_loaded(
    arguments: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.strip("'") for word in arguments.split(" ")]
    command = words[0] + (f" {words[1]}" if words[0] == "bench" else "")
    own = COMMANDS[command] if command in ("simulate",) else ["--trace", "trace.csv"] if command == "plan" else []
    own = ["--port", "0"] if command == "serve" else own  # a server may run on this machine
    assert cli.run([*words, *own]) == 2
    error = capsys.readouterr().err
    told = [line for line in error.splitlines() if line.startswith("longspan: ") and "machine is busy" not in line]
    assert len(told) == 1 and "all is well so far" not in error


def test_what_can_work_gets_as_far_as_the_workers(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ("serve . --port 0 --tp 4 --kv-tokens 32", "bench latency .", "profile .", "serve . --port 0"):
        assert cli.run(arguments.split()) == 1
        assert capsys.readouterr().err.endswith("longspan: all is well so far\n")
