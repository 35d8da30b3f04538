from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from longspan.engine.tokenizer import Tokenizer
from longspan.models.catalog import resolve_model
from tests.e2e.conftest import Server, serve


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with serve("--overload", "off") as running:  # on a machine that others use, too, nothing is in time
        yield running


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's tokenizer in a folder, as load generators want it, which make their prompts themselves."""
    folder = tmp_path_factory.mktemp("tokenizer")
    known = Tokenizer.load(resolve_model("smollm2-135m"))
    known.backend.save(str(folder / "tokenizer.json"))
    told = {**known.info(), "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder
