"""Prompts in chunks against Hugging Face transformers, in fp32: the same tokens, whatever is forced on them.

Every size of chunks, over every number of KV shards, paused in the middle or not, on one pipeline stage and on two,
where chunks of a prompt follow one another. With random weights and prompts long enough that every size makes several
chunks of every shard; a few with the real model. Each case has passages of its own. Chunks run in
the frame of Medha's policies, in mixed batches with other requests' chunks and decodes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from longspan import LLM, SamplingParams
from longspan.engine.tokenizer import Tokenizer
from longspan.models.catalog import ResolvedModel
from tests.models.tiny import SIZES, heads, write_tiny_engine_model

from .conftest import TOP, require_same
from .forced_chunks import ForcedChunks, Replaceable
from .theirs import Theirs

pytestmark = pytest.mark.heavy
STAGES = (1, 2)
ALL = 1 << 20
CHUNK_SIZES, SHARDS = (1, 7, 64, 512, ALL), (1, 2, 3)
NUM_TOKENS, INSTANCES = 4, 3
MANY = 4  # chunks, of which some follow one another through the stages
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=TOP)

# Tokens of the prompt in chunks, and of those beside it.
TINY_LENGTHS = {1: (25, 9, 5), 7: (100, 30, 20), 64: (500, 150, 30), 512: (1600, 700, 30), ALL: (900, 100, 30)}
TINY_CONTEXT = 2048
REAL_LENGTHS = {7: (45, 12), 64: (200, 12), 512: (600, 12)}


@dataclass(frozen=True)
class Case:
    """chunk_size: tokens. shards: instances that keep the KV. pauses: see `ForcedChunks`."""

    chunk_size: int
    shards: int
    pauses: bool

    def __str__(self) -> str:
        chunks = "all at once" if self.chunk_size == ALL else f"chunks of {self.chunk_size}"
        return f"{chunks}, {self.shards} shards, {'paused' if self.pauses else 'in one go'}"


EVERY_CASE = [Case(*case) for case in product(CHUNK_SIZES, SHARDS, (False, True))]
REAL_CASES = [Case(7, 3, True), Case(64, 2, False), Case(512, 1, True)]


@dataclass(frozen=True)
class Sides:
    llm: LLM
    policy: Replaceable
    theirs: Theirs

    def compare(self, case: Case, prompts: list[list[int]]) -> None:
        """The first prompt is the one in chunks; the others run beside it, or in its pause."""
        length = len(prompts[0])
        kv_tokens = length + NUM_TOKENS - 1
        shard_tokens = -(-kv_tokens // case.shards) if case.shards > 1 else ALL
        self.policy.policy = forced = ForcedChunks(case.chunk_size, shard_tokens, pauses=case.pauses)
        completions = self.llm.generate(prompts, GREEDY)
        self.llm.wait_idle()
        assert self.llm.stats().kv_tokens_used == 0
        require_same(completions, [self.theirs.of(prompt, GREEDY, NUM_TOKENS) for prompt in prompts])
        assert len(forced.holders) == case.shards
        assert forced.chunks[0] == min(case.chunk_size, shard_tokens, length)
        assert max(forced.chunks) <= case.chunk_size
        stages = self.llm.engine.config.pp
        assert forced.most_in_flight <= stages
        if len(forced.chunks) >= MANY:
            assert forced.most_in_flight == stages
        if case.pauses:
            assert forced.paused_at is not None
            has_boundary = length > min(case.chunk_size, shard_tokens)
            assert 0 < forced.paused_at < length if has_boundary else forced.paused_at == 0


def start(path: Path, pp: int, theirs: Theirs) -> Iterator[Sides]:
    policy = Replaceable()
    with LLM(
        str(path), policy=policy, instances=INSTANCES, dtype="float32", executor="inproc", threads_per_device=1,
        kv_tokens=2048, pp=pp,
    ) as llm:  # fmt: skip
        yield Sides(llm, policy, theirs)


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Theirs]:
    torch.set_num_threads(1)  # as for `hf_model`
    folder = tmp_path_factory.mktemp("tiny")
    config = LlamaConfig(**{**SIZES, "max_position_embeddings": TINY_CONTEXT}, **heads(6, 3, 8))
    return folder, Theirs(write_tiny_engine_model(folder, config))


@pytest.fixture(scope="module", params=STAGES)
def tiny(tiny_model: tuple[Path, Theirs], request) -> Iterator[Sides]:
    folder, theirs = tiny_model
    yield from start(folder, request.param, theirs)


@pytest.fixture(scope="module")
def noise() -> list[int]:
    """Tokens for random weights."""
    return random.Random(0).choices(range(3, SIZES["vocab_size"]), k=100_000)


@pytest.fixture(scope="module")
def real(model: ResolvedModel, theirs: Theirs) -> Iterator[Sides]:
    yield from start(model.path, 2, theirs)


@pytest.fixture(scope="module")
def book(model: ResolvedModel, moby_dick: str) -> list[int]:
    return Tokenizer.load(model).encode(moby_dick[:400_000])


def passages(book: list[int], lengths: tuple[int, ...], number: int) -> list[list[int]]:
    """Of the case with that number; no two cases share one."""
    start = number * len(book) // len(EVERY_CASE)
    found = []
    for length in lengths:
        found.append(book[start : start + length])
        start += length
    return found


@pytest.mark.parametrize("case", EVERY_CASE, ids=str)
def test_with_random_weights(tiny: Sides, noise: list[int], case: Case) -> None:
    tiny.compare(case, passages(noise, TINY_LENGTHS[case.chunk_size], EVERY_CASE.index(case)))


@pytest.mark.parametrize("case", REAL_CASES, ids=str)
def test_with_the_real_model(real: Sides, book: list[int], case: Case) -> None:
    lengths = REAL_LENGTHS[case.chunk_size][: 2 if case.pauses else 1]
    real.compare(case, passages(book, lengths, EVERY_CASE.index(case)))
