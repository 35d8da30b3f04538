"""docs/add_a_policy.md: its policy runs in all the ways that the page says, from the page's own text."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from longspan import LLM, SamplingParams
from longspan.core.policies import create_policy
from longspan.errors import ConfigError
from tests.models.tiny import CONFIGS, write_tiny_engine_model

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "docs" / "add_a_policy.md").read_text(), re.DOTALL)
POLICY, IN_PYTHON, TEST = (text for language, text in BLOCKS if language == "python")
(COMMANDS,) = (text for language, text in BLOCKS if language == "sh")
EXPORT, SIMULATE, EXPLAIN, STORY, REPLAY, SERVE = COMMANDS.replace("\\\n", "").splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """With the policy's module, which can be imported meanwhile, and a tiny model."""
    path = tmp_path_factory.mktemp("own")
    (path / "my_policy.py").write_text(POLICY)
    write_tiny_engine_model(path / "model", CONFIGS["llama"])
    sys.path.insert(0, str(path))
    yield path
    sys.path.remove(str(path))
    sys.modules.pop("my_policy", None)


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT / "src"), str(ROOT)])}


def arguments(line: str, *more: str) -> list[str]:
    """Of a command of the page, with its trace found from any folder."""
    words = [str(ROOT / word) if word.startswith("tests/") else word for word in shlex.split(line, comments=True)]
    assert words[0] == "longspan"
    return [sys.executable, "-m", *words, *more]


def run(folder: Path, command: Sequence[str]) -> str:
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_about_thirty_lines(folder: Path) -> None:
    body = POLICY[POLICY.index("class ShortestFirst") :]
    assert len([line for line in body.splitlines() if line.strip()]) <= 35
    assert EXPORT == "export PYTHONPATH=."


def test_the_simulator_runs_it_and_its_log_is_explained_and_replays(folder: Path) -> None:
    assert "my_policy:ShortestFirst:patience_s=20" in run(folder, arguments(SIMULATE))
    header = json.loads((folder / "shortest.jsonl").read_text().partition("\n")[0])
    assert (header["policy"], header["own_policy"]) == ("shortest_first", "my_policy:ShortestFirst")
    assert header["options"] == {"patience_s": 20.0}
    assert re.search(r"\br14\b", run(folder, arguments(EXPLAIN, "--all")))
    assert "shortest" in run(folder, arguments(STORY))
    assert run(folder, arguments(EXPLAIN)).count("\n") > 10
    assert "every decision is the same" in run(folder, arguments(REPLAY))
    given = arguments(REPLAY.replace("ShortestFirst", "ShortestFirst:patience_s=3"))
    refused = subprocess.run(given, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=200)
    assert refused.returncode != 0 and "takes the options that the log has; leave them out" in refused.stderr


def test_the_engine_runs_it_in_python(folder: Path) -> None:
    from my_policy import ShortestFirst  # type: ignore[import-not-found]  # the fixture writes it

    assert "policy=ShortestFirst(patience_s=20)" in IN_PYTHON
    tiny = {"executor": "inproc", "dtype": "float32", "kv_tokens": 200, "threads_per_device": 1, "instances": 2}
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    outputs = set()
    for policy in (ShortestFirst(patience_s=20), "my_policy:ShortestFirst:patience_s=20", None):
        with LLM(str(folder / "model"), policy=policy, **tiny) as llm:
            outputs.add(tuple(answer.token_ids for answer in llm.generate([[5] * 50, [6] * 9, [7] * 30], params)))
    assert len(outputs) == 1
    script = IN_PYTHON.replace('"smollm2-135m", instances=2', f"{str(folder / 'model')!r}, **{tiny!r}")
    script = script.replace('["The capital of France is"]', "[[5] * 50]")
    (folder / "script.py").write_text(script)
    run(folder, [sys.executable, "script.py"])


def test_a_server_runs_it(folder: Path) -> None:
    command = arguments(
        SERVE, "--model", "model", "--port", "0", "--executor", "inproc", "--dtype", "float32", "--kv-tokens", "200",
        "--threads-per-device", "1", "--event-log", "served.jsonl",
    )  # fmt: skip
    process = subprocess.Popen(
        command, cwd=folder, env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert process.stdout is not None
        shown = iter(process.stdout.readline, "")
        url = next(found[0] for line in shown if (found := re.search(r"http://\S+/v1", line)))
        body = json.dumps({"model": "model", "prompt": [5] * 9, "max_tokens": 3, "temperature": 0}).encode()
        request = urllib.request.Request(f"{url}/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=100) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] in (1, 2, 3)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=100)
    assert process.returncode == 0
    header = json.loads((folder / "served.jsonl").read_text().partition("\n")[0])
    assert (header["policy"], header["options"]) == ("shortest_first", {"patience_s": 20.0})


def test_a_file_may_have_it_as_a_table(folder: Path) -> None:
    table = '[simulate.policy]\nname = "my_policy:ShortestFirst"\npatience_s = 20\n'
    (folder / "table.toml").write_text(table)
    line = SIMULATE.replace("--policy my_policy:ShortestFirst:patience_s=20", "--config table.toml")
    assert "my_policy:ShortestFirst:patience_s=20" in run(folder, arguments(line))


def test_the_property_tests_take_it_by_one_line(folder: Path) -> None:
    names: dict[str, object] = {}
    exec(TEST, names)
    test = names["test_shortest_first"]
    assert callable(test)
    test()


def test_what_is_wrong_with_it_is_told(folder: Path) -> None:
    for text, told in [
        ("my_policy:ShortestFirst:patience=3", r"no option patience; its options, and their defaults, are patience_s"),
        ("my_policy:ShortestFirst:patience_s=soon", "patience_s is 'soon', but must be a number"),
        ("my_policy:ShortestFirst:patience_s=0", "patience_s is 0.0, but must be a number of seconds above 0"),
        ("my_policy:Longest", "has no such class that extends"),
        ("my_policy:Request", "has no such class that extends"),
        ("no_such_module:ShortestFirst", "PYTHONPATH"),
    ]:
        with pytest.raises(ConfigError, match=told):
            create_policy(text)
