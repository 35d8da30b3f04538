"""A model that gives NaN for some prompts: those requests end with an error, and nobody else notices."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from longspan import LLM, SamplingParams
from longspan.attention.backend import PagedSegment
from longspan.attention.cpu import CpuBackend
from longspan.errors import ModelOutputError
from longspan.native.library import best_library
from longspan.outputs import RequestOutput
from tests.models.tiny import make_model
from tests.models.tokenizers_zoo import byte_level

POISON = 399
"""The token whose embedding is NaN: its KV is NaN, and so is all that sees it."""
PROMPTS = [[10 + n] * length for n, length in enumerate((5, 70, 20, 1, 44))]
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
SEEDED = SamplingParams(max_tokens=12, seed=3, top_p=0.9, frequency_penalty=0.5, logprobs=2, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads of 32, so that our own kernels read its KV."""
    folder = tmp_path_factory.mktemp("poisoned")
    config = LlamaConfig(
        vocab_size=400, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, head_dim=32,
        num_key_value_heads=2, max_position_embeddings=256, eos_token_id=2,
    )  # fmt: skip
    make_model(config).save_pretrained(folder)
    byte_level().save(str(folder / "tokenizer.json"))
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][POISON] = math.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(params=["native", "torch"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "torch":
        monkeypatch.setenv("LONGSPAN_CPU_ISA", "torch")
    best_library.cache_clear()
    yield request.param
    best_library.cache_clear()


SHAPES: dict[str, dict[str, Any]] = {
    "alone": {},
    "two instances": {"instances": 2},
    "two devices": {"tp": 2},
    "two stages": {"pp": 2},
    "int8": {"quantization": "int8"},
    "bfloat16": {"dtype": "bfloat16"},
    "chunks in mixed batches": {"policy": "medha", "max_batch_tokens": 24, "instances": 2},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_poisoned_request_fails_alone_and_leaves_nothing(folder: Path, kernels: str, shape: str) -> None:
    """Its slots go to others at once: what is left in them must not matter, nor what is beside them in a block."""
    if kernels == "torch" and shape == "int8":
        shape = "two instances"  # there are no such kernels of torch's
    settings = {"dtype": "float32", "quantization": "none", **SHAPES[shape]}
    with LLM(str(folder), executor="inproc", kv_tokens=260, threads_per_device=1, **settings) as llm:
        expected = {
            params: [llm.generate([prompt], params)[0].token_ids for prompt in PROMPTS] for params in (GREEDY, SEEDED)
        }
        poisoned = [[POISON], [7] * 60 + [POISON], [POISON] * 40]
        for params in (GREEDY, SEEDED):
            for _ in range(2):  # the second time all slots have held NaN
                outcomes = run_together(llm, [*poisoned, *PROMPTS], params)
                for outcome in outcomes[:3]:
                    assert isinstance(outcome, ModelOutputError) and "logits for token 1 " in str(outcome)
                assert outcomes[3:] == expected[params]
        stats = llm.stats()
        assert stats.num_bad_logits == 12
        assert (stats.num_running, stats.num_waiting, stats.kv_tokens_used) == (0, 0, 0)


def test_a_token_that_poisons_in_mid_answer_ends_it_there(folder: Path) -> None:
    """The text so far has been sent; the error follows."""
    with LLM(str(folder), executor="inproc", dtype="float32", kv_tokens=260, threads_per_device=1, instances=2) as llm:
        async def first_poisoned() -> tuple[list[int], Exception]:
            for seed in range(400):
                params = SamplingParams(max_tokens=150, seed=seed, temperature=2.0, ignore_eos=True)
                tokens: list[int] = []
                try:
                    async for output in llm.engine.generate([5, 6], params, f"r{seed}"):
                        tokens += output.token_ids
                except ModelOutputError as error:
                    return tokens, error
            raise AssertionError("the random model never sampled the poisonous token")

        tokens, error = llm._call(first_poisoned())
        assert tokens[-1] == POISON and POISON not in tokens[:-1]
        assert f"logits for token {len(tokens) + 1} " in str(error)
        llm.wait_idle()
        assert llm.stats().kv_tokens_used == 0


def run_together(llm: LLM, prompts: list[list[int]], params: SamplingParams) -> list[tuple[int, ...] | Exception]:
    """All at once; what each got."""

    async def one(number: int, prompt: list[int]) -> tuple[int, ...]:
        outputs: list[RequestOutput] = []
        async for output in llm.engine.generate(prompt, params, f"r{number}"):
            outputs.append(output)
        return tuple(token for output in outputs for token in output.token_ids)

    async def all_of_them() -> list[tuple[int, ...] | BaseException]:
        found = await asyncio.gather(*(one(*request) for request in enumerate(prompts)), return_exceptions=True)
        await llm.engine.idle()
        return found

    return llm._call(all_of_them())


@pytest.mark.parametrize("rows", [1, 3])
def test_padding_of_short_contexts_reads_no_others_slots(rows: int) -> None:
    """torch's twin pads contexts that share a product: the padding's weights are 0, but 0 times NaN is NaN."""
    k_GNK, v_GNK = torch.randn(2, 2, 40, 32)
    k_GNK[:, 0], v_GNK[:, 0] = math.nan, math.nan  # another request's slot
    segments = [PagedSegment(row, row + 1, torch.arange(1, 11 + row)) for row in range(rows)]
    part = CpuBackend().plan_paged(segments).attend(torch.randn(rows, 4, 32), k_GNK, v_GNK, 0.2)
    assert part.out_THK.isfinite().all() and part.lse_TH.isfinite().all()
