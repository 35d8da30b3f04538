"""Whatever is decided, the tokens are those of Hugging Face transformers in fp32.

One test for each cell of `cells.py`: a policy, an arrangement of devices, sizes that are forced, requests that come and
go. A failing cell says how to run it alone.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
import torch

from longspan.engine.tokenizer import Tokenizer
from longspan.metrics.event_log import replay
from longspan.models.catalog import ResolvedModel, resolve_model
from longspan.sampling_params import SamplingParams
from tests.core.settings import EVERY_POLICY
from tests.exactness.cells import AXES, Cell, all_cells, possible
from tests.exactness.covering import pairs_of, pairs_to_meet
from tests.exactness.serving import (
    NUM_TOKENS,
    STOPS_AFTER,
    TOP,
    Answer,
    engine_config,
    lengths,
    params_of,
    policy_of,
    serve,
    victims,
)
from tests.exactness.theirs import Reference, Theirs
from tests.models.tiny import CONFIGS, write_tiny_engine_model

TOLERANCE, REAL_TOLERANCE = 1e-4, 1e-3
"""In log-probabilities, of three layers of random weights and of thirty real ones."""


@dataclass(frozen=True)
class Subject:
    """A model on both sides. text: token ids that prompts are cut out of."""

    path: Path
    theirs: Theirs
    tokenizer: Tokenizer
    text: list[int]

    def prompts(self, cell: Cell) -> list[list[int]]:
        wanted = lengths(cell)
        return [self.text[number : number + length] for number, length in enumerate(wanted)]


@pytest.fixture(scope="session")
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Subject]:
    """A model by the name that cells give it, made when it is first asked for."""
    torch.set_num_threads(1)  # OpenMP threads that wait for each other on a busy machine take forever

    @functools.cache
    def get(name: str) -> Subject:
        if name == "smollm2":
            model: ResolvedModel = request.getfixturevalue("model")
            path, tokenizer = model.path, Tokenizer.load(model)
            theirs = request.getfixturevalue("theirs")
            text = tokenizer.encode(request.getfixturevalue("moby_dick")[5000:8000])
        else:
            path = tmp_path_factory.mktemp(name)
            theirs = Theirs(write_tiny_engine_model(path, CONFIGS[name]))
            tokenizer = Tokenizer.load(resolve_model(str(path)))
            text = random.Random(name).choices(range(3, CONFIGS[name].vocab_size), k=400)
        return Subject(path, theirs, tokenizer, text)

    return get


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cell" in metafunc.fixturenames:
        alone = metafunc.config.getoption("cell")
        metafunc.parametrize("cell", [Cell.parse(alone)] if alone else all_cells(), ids=str)


def test_a_cell(cell: Cell, subject: Callable[[str], Subject], tmp_path: Path) -> None:
    ours, log = subject(cell.model), tmp_path / "events.jsonl"
    prompts, params = ours.prompts(cell), params_of(cell)
    wanted = [Wanted.of(ours, prompt, params, cell.end) for prompt in prompts]
    try:
        served = asyncio.run(
            serve(cell, engine_config(cell, ours.path, log), [*zip(prompts, [w.params for w in wanted], strict=True)])
        )
        for number, (answer, want) in enumerate(zip(served.answers, wanted, strict=True)):
            want.compare(answer, number in victims(cell), REAL_TOLERANCE if cell.model == "smollm2" else TOLERANCE)
        stats = served.stats
        assert (stats.num_running, stats.num_waiting, stats.kv_tokens_used) == (0, 0, 0)
        assert replay(log, policy_of(cell)) is None
    except BaseException as error:
        error.add_note(f"once more: python -m pytest tests/exactness/test_matrix.py --cell '{cell}'\nits events: {log}")
        raise


@dataclass(frozen=True)
class Wanted:
    """What one request must get."""

    params: SamplingParams
    reference: Reference
    text: str
    reason: str

    @classmethod
    def of(cls, model: Subject, prompt: list[int], params: SamplingParams, end: str) -> Wanted:
        theirs = model.theirs.of(prompt, replace(params, max_tokens=None), NUM_TOKENS)
        tokens, decode = theirs.tokens, model.tokenizer.decode
        stopper = tokens[STOPS_AFTER]
        count, reason = len(tokens), "length"
        text = decode(tokens)
        if end == "first":
            count, text = 1, decode(tokens[:1])
        elif end == "stop_token":
            params, reason = replace(params, stop_token_ids=(stopper,)), "stop"
            count = tokens.index(stopper) + 1
            text = decode(tokens[: count - 1])  # a stop token is no text
        elif end == "stop_string":
            stop = decode([stopper])
            params, reason = replace(params, stop=(stop,)), "stop"
            count = next(n for n in range(1, len(tokens) + 1) if stop in decode(tokens[:n]))
            text = text[: text.index(stop)]
        return cls(params, Reference(tokens[:count], theirs.logprobs_TV[:count]), text, reason)

    def compare(self, answer: Answer, may_be_cut: bool, tolerance: float) -> None:
        tokens = self.reference.tokens
        if may_be_cut and answer.reason in ("abort", None):
            tokens = tokens[: len(answer.tokens)]
        else:
            assert answer.reason == self.reason
            assert answer.text == self.text
        assert answer.tokens == tokens
        for position, theirs_V in zip(answer.logprobs, self.reference.logprobs_TV, strict=False):
            assert len(position.top) == TOP
            for ours in position.top:
                assert abs(ours.logprob - float(theirs_V[ours.token_id])) < tolerance
        assert len(answer.logprobs) == (len(tokens) if self.params.logprobs else 0)


def test_all_pairs_meet() -> None:
    """Every policy there is, and every two values that can be in one cell, are in some cell."""
    cells = [asdict(cell) for cell in all_cells()]
    met = {pair for cell in cells for pair in pairs_of(AXES, cell)}
    assert not set(pairs_to_meet(AXES, possible)) - met
    assert {cell["policy"] for cell in cells} >= set(EVERY_POLICY)
    assert all(map(possible, cells))


def test_a_cell_is_read_as_it_is_written() -> None:
    for cell in all_cells():
        assert Cell.parse(str(cell)) == cell
