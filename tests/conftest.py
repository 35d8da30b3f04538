"""What several test folders share: the real model, real text, and how property tests run."""

from __future__ import annotations

import gzip
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import HealthCheck, settings

from longspan.models.catalog import ResolvedModel, resolve_model
from tests.costs import Costs, Leftovers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DATA = Path(__file__).parent / "data"

# No deadline, for cores are shared; and a failing example says how to repeat it.
settings.register_profile(
    "longspan", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
# The same examples in each run, for what says whether a change may land; who works draws new ones.
settings.register_profile("steady", settings.get_profile("longspan"), derandomize=True, database=None)
settings.load_profile("longspan")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--costs", metavar="FILE", help="write what each test cost, in JSON")
    parser.addoption("--cell", help="run this cell of tests/exactness/test_matrix.py instead of all")


def pytest_configure(config: pytest.Config) -> None:
    # What a shell starts in the background ignores Ctrl-C, and all that it starts do; tests send it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    costs = Costs(config)
    config.pluginmanager.register(costs)
    if not costs.is_worker:
        config.pluginmanager.register(Leftovers(costs))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What a test draws without a seed of its own is the same each time; what hypothesis draws is not."""
    torch.manual_seed(0)
    random.seed(0)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown() -> Iterator[None]:
    """Whatever a test did with Ctrl-C is undone when it has ended: later ones send it, too."""
    yield
    handler, blocked = signal.getsignal(signal.SIGINT), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    assert handler is signal.default_int_handler, f"Ctrl-C is left to {handler}"
    assert signal.SIGINT not in blocked, "Ctrl-C is left blocked"


@pytest.fixture(scope="session")
def model() -> ResolvedModel:
    """The embedded default model, fetched once into the cache."""
    return resolve_model("smollm2-135m")


@pytest.fixture(scope="session")
def hf_model(model: ResolvedModel) -> PreTrainedModel:
    """The same GGUF, loaded and dequantised by transformers, in fp32: a quarter of a minute's work."""
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)  # OpenMP threads that wait for each other on a busy machine take forever
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        model.path.parent, gguf_file=model.path.name, dtype=torch.float32
    )
    return loaded.eval()


@pytest.fixture(scope="session")
def moby_dick() -> str:
    return gzip.open(DATA / "moby_dick.txt.gz", "rt").read()


@pytest.fixture
def threads_as_before() -> Iterator[None]:
    """For tests that set torch's number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
