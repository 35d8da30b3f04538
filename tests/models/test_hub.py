"""Models by their id on a hub: one on the loopback interface, asked by processes as a user starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from longspan import LLM, SamplingParams
from longspan.errors import ConfigError
from longspan.models.catalog import resolve_model
from longspan.models.hub import is_hub_id
from tests.models.hub_standin import TOKEN, Hub, commit_of, hub
from tests.models.tiny import CONFIGS, write_tiny_engine_model

SERVED = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
          "merges.txt", "model.safetensors"}  # fmt: skip
NOT_SERVED = {"pytorch_model.bin", "README.md", "model.onnx", "consolidated.safetensors", ".gitattributes"}
ASK = """
import json, sys
from longspan.errors import LongspanError
from longspan.models.catalog import resolve_model
told = []
try:
    found = resolve_model(sys.argv[1], lambda phase: told.append((phase.text, phase.done, phase.total)),
                          sys.argv[2] if len(sys.argv) > 2 else None)
    print(json.dumps({"name": found.name, "path": str(found.path), "kind": found.kind, "told": told}))
except LongspanError as error:
    print(json.dumps({"error": f"{type(error).__name__}: {error}", "told": told}))
"""


@dataclass
class Asker:
    """What a start of its own finds. hub: that it asks. home: its cache."""

    hub: Hub
    home: Path

    def __call__(self, *arguments: str, **environment: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-c", ASK, *arguments], env=self.environment(**environment), capture_output=True,
            text=True, timeout=120, check=True,
        )  # fmt: skip
        answer: dict[str, Any] = json.loads(done.stdout)
        return {**answer, "log": done.stderr}

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        return {**kept, "HF_ENDPOINT": self.hub.url, "HF_HOME": str(self.home), "HF_HUB_DISABLE_XET": "1",
                "NO_PROXY": "127.0.0.1", **more}  # fmt: skip


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Asker]:
    with hub(tmp_path / "hub") as ours:
        yield Asker(ours, tmp_path / "home")


@pytest.fixture
def publish(tmp_path: Path) -> Callable[..., Path]:
    """Makes a repository of small files, one of which may be None: not there."""

    def write(repo: str = "some/model", revision: str = "main", **changes: bytes | None) -> Path:
        folder = tmp_path / "hub" / repo / revision
        (folder / "original").mkdir(parents=True)
        for name in SERVED | NOT_SERVED | {"original/params.json", "original/model.safetensors"}:
            (folder / name).write_bytes(f"{name} of {revision}".encode() * 100)
        for name, content in changes.items():
            place = folder / name.replace("__", ".")
            place.unlink(missing_ok=True)
            if content is not None:
                place.write_bytes(content)
        return folder

    return write


@pytest.mark.parametrize(("name", "is_one"), [
    ("Qwen/Qwen3-0.6B", True), ("a/b", True), ("gpt2", False), ("a/b/c", False), ("/a/b", False), ("../b", False),
    ("a/..", False), ("a/b ", False), ("a\\b/c", False), ("a/" + "b" * 200, False), ("ä/b", False),
])  # fmt: skip
def test_what_an_id_is(name: str, is_one: bool) -> None:
    assert is_hub_id(name) == is_one


def test_what_is_served_is_fetched_once_and_no_more(ask: Asker, publish: Callable[..., Path]) -> None:
    source = publish()
    found = ask("some/model")
    folder = Path(found["path"])
    assert (found["name"], found["kind"], folder.name) == ("some/model", "hf", commit_of("some/model/main"))
    assert {path.name for path in folder.iterdir()} == ask.hub.fetched() == SERVED
    assert all((folder / name).read_bytes() == (source / name).read_bytes() for name in SERVED)
    total = sum((source / name).stat().st_size for name in SERVED)
    assert found["told"][0] == [f"looking for some/model on {ask.hub.url[7:]}", 0, 0]
    assert found["told"][-1] == [f"downloading some/model from {ask.hub.url[7:]}", total, total]
    ask.hub.asked.clear()
    assert ask("some/model")["path"] == found["path"]
    assert not ask.hub.fetched()


def test_revisions(ask: Asker, publish: Callable[..., Path]) -> None:
    publish()
    publish(revision="v2")
    for revision in ("v2", commit_of("some/model/v2")):
        folder = Path(ask("some/model", revision)["path"])
        assert (folder / "merges.txt").read_bytes().startswith(b"merges.txt of v2")
    error = ask("some/model", "v3")["error"]
    assert error.startswith("ModelError: some/model has no revision 'v3'; http://127.0.0.1")


def test_weights_in_several_files(ask: Asker, publish: Callable[..., Path]) -> None:
    parts = {f"model-0000{i}-of-00002__safetensors": b"part %d" % i for i in (1, 2)}
    publish(model__safetensors=None, model__safetensors__index__json=b"{}", **parts)
    ask("some/model")
    assert {name for name in ask.hub.fetched() if name.endswith(".safetensors")} == {
        name.replace("__", ".") for name in parts
    }


def test_pickles_are_refused(ask: Asker, publish: Callable[..., Path]) -> None:
    publish(model__safetensors=None)
    error = ask("some/model")["error"]
    assert "some/model has its weights as pickles only (pytorch_model.bin), which run whatever code is in them" in error
    assert not ask.hub.fetched()


def test_no_weights_and_no_config(ask: Asker, publish: Callable[..., Path]) -> None:
    publish(model__safetensors=None, pytorch_model__bin=None)
    assert "some/model has no weights in safetensors" in ask("some/model")["error"]
    publish("some/gguf", config__json=None, q4__gguf=b"GGUF")
    assert "has no config.json; fetch one of its .gguf files (q4.gguf) and pass the file" in ask("some/gguf")["error"]


def test_gated_private_and_missing(ask: Asker, publish: Callable[..., Path]) -> None:
    publish("some/gated-model")
    for environment in ({}, {"HF_TOKEN": "hf_wrong"}):
        error = ask("some/gated-model", **environment)["error"]
        assert error.startswith("ModelError: some/gated-model is gated: accept its conditions on http://127.0.0.1")
        assert "HF_TOKEN" in error
    assert ask("some/gated-model", HF_TOKEN=TOKEN)["name"] == "some/gated-model"
    assert "there is no some/other on 127.0.0.1" in ask("some/other")["error"]


def test_a_download_that_breaks_off_goes_on(ask: Asker, publish: Callable[..., Path]) -> None:
    source = publish(model__safetensors=os.urandom(3 << 20))
    ask.hub.cuts = 1
    folder = Path(ask("some/model")["path"])
    assert ask.hub.cuts == 0
    assert all((folder / name).read_bytes() == (source / name).read_bytes() for name in SERVED)


def test_a_download_that_stays_broken(ask: Asker, publish: Callable[..., Path]) -> None:
    """A hub that promises more bytes than it has."""
    source = publish()
    ask.hub.promised_more = 7
    error = ask("some/model")["error"]
    assert error.startswith("ModelError: some/model could not be fetched whole (Consistency check failed")
    assert "start again" in error
    assert not list(ask.home.rglob("*.incomplete"))
    ask.hub.status = 503
    assert "some/model is not here, or not all of it" in ask("some/model")["error"]
    ask.hub.status, ask.hub.promised_more = 200, 0
    folder = Path(ask("some/model")["path"])
    assert all((folder / name).read_bytes() == (source / name).read_bytes() for name in SERVED)


def test_without_a_network_what_is_here_will_do(ask: Asker, publish: Callable[..., Path]) -> None:
    publish()
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    for environment in (nowhere, {"HF_HUB_OFFLINE": "1"}):
        error = ask("some/model", **environment)["error"]
        assert error.startswith("ModelError: some/model is not here, or not all of it, and 127.0.0.1")
        assert "pass a folder in Hugging Face layout or a .gguf file" in error
    found = ask("some/model")
    for environment in (nowhere, {"HF_HUB_OFFLINE": "1"}):
        again = ask("some/model", **environment)
        assert again["path"] == found["path"]
        assert "some/model is taken from" in again["log"]
    ask.hub.status = 503
    assert ask("some/model")["path"] == found["path"]
    (Path(found["path"]) / "tokenizer.json").unlink()
    assert "or not all of it" in ask("some/model")["error"]


def test_other_refusals(ask: Asker, publish: Callable[..., Path]) -> None:
    publish()
    ask.hub.status = 403
    error = ask("some/model")["error"]
    assert error.startswith("ModelError: 127.0.0.1") and "refuses some/model (" in error and "check HF_TOKEN" in error


def test_a_revision_is_for_the_hub(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"revision is 'v1', but .* does not come from the hub"):
        resolve_model(str(tmp_path), revision="v1")


def test_a_model_of_the_hub_is_served(ask: Asker, tmp_path: Path) -> None:
    folder = tmp_path / "hub/some/tiny/v1"
    write_tiny_engine_model(folder, CONFIGS["qwen2"])
    script = (
        "import sys\nfrom longspan import LLM, SamplingParams\n"
        "if __name__ == '__main__':\n"
        "    with LLM('some/tiny', revision='v1', executor='inproc', dtype='float32', kv_tokens=64) as llm:\n"
        "        (answer,) = llm.generate([[5, 6, 7]], SamplingParams(temperature=0, max_tokens=4, ignore_eos=True))\n"
        "        print(llm.engine.model_name, *answer.token_ids)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=ask.environment(), capture_output=True, text=True, timeout=300, check=True
    )
    greedy = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    with LLM(str(folder), executor="inproc", dtype="float32", kv_tokens=64) as llm:
        (answer,) = llm.generate([[5, 6, 7]], greedy)
    assert done.stdout.split() == ["some/tiny", *map(str, answer.token_ids)]
