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
    ASKED,
    MOST_TURNS,
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
from tests.models.tiny import CONFIGS, scaled, write_tiny_engine_model

TOLERANCE, REAL_TOLERANCE = 1e-4, 1e-3
"""In log-probabilities, of three layers of random weights and of thirty real ones."""
LIGHT = 6
"""One cell of so many is no heavy one, so that some of all this is tried where time is short."""


@dataclass(frozen=True)
class Subject:
    """A model on both sides. text: token ids that prompts are cut out of."""

    path: Path
    theirs: Theirs
    tokenizer: Tokenizer
    text: list[int]

    def prompts(self, cell: Cell) -> list[list[int]]:
        """Return those of a cell; what goes on from an answer does so from all that it could be."""
        wanted, prompts = lengths(cell), list[list[int]]()
        for number, length in enumerate(wanted):
            goes_on = cell.reuse == "turns" and number % MOST_TURNS
            if cell.reuse == "again" and number % 2:
                prompts.append(prompts[-1])
            elif goes_on:
                answer = self.theirs.of(prompts[-1], replace(params_of(cell), max_tokens=None), NUM_TOKENS).tokens
                prompts.append([*prompts[-1], *answer, *self.text[number : number + ASKED]])
            elif cell.reuse == "forks":
                prompts.append([*self.text[: length // 2], *self.text[number : number + length - length // 2]])
            else:
                prompts.append(self.text[number : number + length])
        assert [len(prompt) for prompt in prompts] == wanted
        return prompts


@pytest.fixture(scope="session")
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Subject]:
    """A model by the names that cells give it and its RoPE, made when it is first asked for."""
    torch.set_num_threads(1)  # OpenMP threads that wait for each other on a busy machine take forever

    @functools.cache
    def get(name: str, rope: str) -> Subject:
        if name == "smollm2":
            model: ResolvedModel = request.getfixturevalue("model")
            path, tokenizer = model.path, Tokenizer.load(model)
            theirs = request.getfixturevalue("theirs")
            text = tokenizer.encode(request.getfixturevalue("moby_dick")[5000:8000])
        else:
            path = tmp_path_factory.mktemp(f"{name}-{rope}")
            config = CONFIGS[name] if rope == "plain" else scaled(CONFIGS[name], rope)
            written = write_tiny_engine_model(path, config)
            tokenizer = Tokenizer.load(resolve_model(str(path)))
            theirs = Theirs(written, tokenizer.decode)
            text = random.Random(name).choices(range(3, CONFIGS[name].vocab_size), k=400)
        return Subject(path, theirs, tokenizer, text)

    return get


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cell" in metafunc.fixturenames:
        alone = metafunc.config.getoption("cell")
        cells = [Cell.parse(alone)] if alone else all_cells()
        metafunc.parametrize("cell", [
            pytest.param(cell, id=str(cell), marks=pytest.mark.heavy if number % LIGHT else ())
            for number, cell in enumerate(cells)
        ])  # fmt: skip


def test_a_cell(cell: Cell, subject: Callable[[str, str], Subject], tmp_path: Path) -> None:
    ours, log = subject(cell.model, cell.rope), tmp_path / "events.jsonl"
    prompts, params = ours.prompts(cell), params_of(cell)
    wanted = [Wanted.of(ours, prompt, params, cell.end) for prompt in prompts]
    try:
        served = asyncio.run(
            serve(cell, engine_config(cell, ours.path, log), [*zip(prompts, [w.params for w in wanted], strict=True)])
        )
        for number, (answer, want) in enumerate(zip(served.answers, wanted, strict=True)):
            tolerance = REAL_TOLERANCE if cell.model == "smollm2" else TOLERANCE
            want.compare(answer, number in victims(cell), tolerance)
            if cell.scored and answer.tokens:
                require_same_prompt(answer, prompts[number], ours.theirs.prompt_logprobs(prompts[number]), tolerance)
        stats = served.stats
        assert (stats.num_running, stats.num_waiting, stats.kv_tokens_used) == (0, 0, 0)
        assert replay(log, policy_of(cell)) is None
        assert stats.num_losses == (cell.loss != "none")
        if cell.loss != "none":  # what it held is not found again
            return
        leaves = cell.reuse != "none" and not cell.scored
        if not leaves or cell.rope == "plain":  # where KV depends on the length, long requests leave none
            assert (stats.kv_tokens_cached > 0) == leaves
        in_time = (cell.reuse, cell.arrivals, cell.pool) == ("again", "in_turn", "ample")
        assert stats.num_found > 0 or not (leaves and in_time and cell.policy == "longspan")
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


def require_same_prompt(answer: Answer, prompt: list[int], theirs_TV: torch.Tensor, tolerance: float) -> None:
    """Log-probabilities and ranks of the prompt's own tokens, and of the best at each of them."""
    assert answer.prompt_logprobs is not None
    (first, none), *others = answer.prompt_logprobs.positions()
    assert (first, none) == (prompt[0], None) and [token for token, _ in others] == prompt[1:]
    for (token, position), theirs_V in zip(others, theirs_TV[:-1], strict=True):
        assert position is not None and len(position.top) == TOP and position.chosen.token_id == token
        for ours in (*position.top, position.chosen):
            assert abs(ours.logprob - float(theirs_V[ours.token_id])) < tolerance
        better = int((theirs_V > theirs_V[token] + tolerance).sum())
        assert better < position.chosen.rank <= int((theirs_V > theirs_V[token] - tolerance).sum()) + 1


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
