"""What several test folders share: the real model, real text."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from longspan.models.catalog import ResolvedModel, resolve_model

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def model() -> ResolvedModel:
    """The embedded default model, fetched once into the cache."""
    return resolve_model("smollm2-135m")


@pytest.fixture(scope="session")
def moby_dick() -> str:
    return gzip.open(DATA / "moby_dick.txt.gz", "rt").read()


@pytest.fixture
def threads_as_before() -> Iterator[None]:
    """For tests that set torch's number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
