"""Which weight format a worker takes, and what an engine makes of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from longspan import LLM, SamplingParams
from longspan.errors import ConfigError
from longspan.layers.quantized_linear import quantized_kernels_serve
from longspan.models.catalog import ResolvedModel
from longspan.native.isa import ISA_VARIABLE, Isa, available_isas
from longspan.native.library import best_library
from longspan.outputs import Completion
from longspan.worker.device import resolve_quantization

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
BF16, FP32 = torch.bfloat16, torch.float32
PROMPTS = ["The capital of France is", "Call me Ishmael. Some years ago - never mind how long",
           "Water boils at a temperature of", "One, two, three, four,"]  # fmt: skip
NEAR_TIE = 0.25  # nats; bf16 moves log-probabilities of this model by a few hundredths


@pytest.fixture
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels of this instruction set only; `torch`: none."""
    monkeypatch.setenv(ISA_VARIABLE, request.param)
    best_library.cache_clear()
    yield
    best_library.cache_clear()


needs_bf16 = pytest.mark.skipif(not quantized_kernels_serve(CPU, BF16), reason="no kernels for bf16 on this machine")
needs_avx2 = pytest.mark.skipif(Isa.AVX2 not in available_isas(), reason="no AVX2 on this machine")


@needs_bf16
def test_auto_keeps_gguf_where_decoding_is_bound_by_memory() -> None:
    assert resolve_quantization("auto", CPU, BF16, is_gguf=True) == "gguf"
    assert resolve_quantization("auto", CPU, BF16, is_gguf=False) == "none"
    assert resolve_quantization("int8", CPU, BF16, is_gguf=False) == "int8"


def test_auto_leaves_fp32_and_gpus_exact() -> None:
    assert resolve_quantization("auto", CPU, FP32, is_gguf=True) == "none"
    assert resolve_quantization("auto", CUDA, BF16, is_gguf=True) == "none"
    assert resolve_quantization("none", CPU, BF16, is_gguf=True) == "none"


@needs_avx2
@pytest.mark.parametrize("isa", ["avx2"], indirect=True)
def test_without_bf16_products_there_is_fp32(isa: None) -> None:
    assert resolve_quantization("auto", CPU, BF16, is_gguf=True) == "none"
    assert resolve_quantization("gguf", CPU, FP32, is_gguf=True) == "gguf"
    with pytest.raises(ConfigError, match=r"int8, but no kernels .* on cpu in bfloat16.*--quantization none"):
        resolve_quantization("int8", CPU, BF16, is_gguf=True)


@pytest.mark.parametrize("isa", ["torch"], indirect=True)
def test_without_kernels_asking_is_an_error(isa: None) -> None:
    assert resolve_quantization("auto", CPU, BF16, is_gguf=True) == "none"
    with pytest.raises(ConfigError, match="gguf, but no kernels for it run here"):
        resolve_quantization("gguf", CPU, FP32, is_gguf=True)


def test_gpus_have_no_kernels_for_it() -> None:
    with pytest.raises(ConfigError, match="no kernels for it run here on cuda"):
        resolve_quantization("int8", CUDA, BF16, is_gguf=False)


def test_only_gguf_files_hold_gguf() -> None:
    with pytest.raises(ConfigError, match=r"no \.gguf file; use --quantization int8"):
        resolve_quantization("gguf", CPU, FP32, is_gguf=False)


def greedy(model: ResolvedModel, **settings) -> list[Completion]:
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, logprobs=5)
    with LLM(str(model.path), instances=1, kv_tokens=400, threads_per_device=1, **settings) as llm:
        return llm.generate(PROMPTS, params)


@pytest.fixture(scope="module")
def dequantised(model: ResolvedModel) -> list[Completion]:
    """fp32, which other tests compare with transformers."""
    return greedy(model, dtype="float32", quantization="none", executor="inproc")


def assert_same_up_to_near_ties(got: list[Completion], expected: list[Completion]) -> None:
    """The same tokens; where they part, both were nearly as likely."""
    for ours, exact in zip(got, expected, strict=True):
        assert exact.logprobs is not None
        for token, wanted, position in zip(ours.token_ids, exact.token_ids, exact.logprobs, strict=True):
            if token != wanted:
                logprobs = {top.token_id: top.logprob for top in position.top}
                assert logprobs[wanted] - logprobs.get(token, -torch.inf) < NEAR_TIE
                break


@needs_bf16
@pytest.mark.parametrize("settings", [
    {"quantization": "gguf", "executor": "inproc"},
    {"quantization": "gguf", "executor": "multiproc", "tp": 2},
    {"quantization": "int8", "executor": "inproc", "tp": 2},
], ids=lambda s: " ".join(map(str, s.values())))  # fmt: skip
def test_an_engine_says_the_same_with_fewer_bits(
    model: ResolvedModel, dequantised: list[Completion], settings: dict
) -> None:
    assert_same_up_to_near_ties(greedy(model, dtype="bfloat16", **settings), dequantised)


def test_quants_in_fp32_are_exact(model: ResolvedModel, dequantised: list[Completion]) -> None:
    if not quantized_kernels_serve(CPU, FP32):
        pytest.skip("no kernels on this machine")
    kept = greedy(model, dtype="float32", quantization="gguf", executor="inproc")
    assert [c.token_ids for c in kept] == [c.token_ids for c in dequantised]
    for ours, exact in zip(kept, dequantised, strict=True):
        for mine, theirs in zip(ours.logprobs or (), exact.logprobs or (), strict=True):
            assert [top.token_id for top in mine.top] == [top.token_id for top in theirs.top]
            assert all(abs(a.logprob - b.logprob) < 1e-3 for a, b in zip(mine.top, theirs.top, strict=True))
