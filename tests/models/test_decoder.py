"""All layers of a decode step in one call: the same numbers as one layer after the other."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, Qwen2Config, Qwen3Config

from longspan.attention.elastic import ElasticAttention
from longspan.attention.layout import plan_layout, positions_of
from longspan.attention.native import NativeCpuBackend, cpu_backend
from longspan.core.actions import KVRange, RunBatch, Segment
from longspan.distributed.shared_memory import SharedMemoryTransport
from longspan.distributed.tensor_parallel import SingleDevice
from longspan.distributed.transport import SoleDevice
from longspan.executor.meeting_place import MeetingPlace
from longspan.models.config import load_model_config
from longspan.models.llama import LlamaModel
from longspan.models.sharding import TensorParallelShard
from longspan.models.weights import open_weights
from longspan.worker.kv_pool import KVPool
from tests.models.tiny import CPU, make_model
from tests.threads import in_threads

SIZES = {"vocab_size": 128, "hidden_size": 192, "intermediate_size": 256, "num_hidden_layers": 3,
         "max_position_embeddings": 512, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 64}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "qwen2, biases": Qwen2Config(**SIZES),
    "qwen3, norms": Qwen3Config(**SIZES, tie_word_embeddings=True),
}
CONTEXTS = (0, 1, 40, 300)  # tokens that each request has stored


def load(folder: Path, dtype: torch.dtype, weight_format: str) -> LlamaModel:
    config = load_model_config(folder)
    shard = TensorParallelShard.of(config, 0, 1)
    return LlamaModel.load(config, open_weights(folder, config), shard, dtype, CPU, weight_format)


def step(model: LlamaModel, dtype: torch.dtype) -> tuple[torch.Tensor, KVPool]:
    """One token of each request; its logits, and the pool afterwards."""
    pool = KVPool(3, 2, 512, 64, dtype, CPU)
    generator = torch.Generator().manual_seed(1)
    segments = []
    for number, stored in enumerate(CONTEXTS):
        if stored:
            pool.insert(number, [(0, stored)], torch.randn(2, 3, 2, stored, 64, generator=generator).to(dtype))
        context = ((0, stored),) if stored else ()
        store = (KVRange(0, stored, stored + 1),)
        segments.append(Segment(f"r{number}", stored, 1, (0,), store, context, residence=number))
    layout = plan_layout(RunBatch(0, (0,), tuple(segments)), 0, pool, CPU)
    attention = ElasticAttention(layout, pool, cpu_backend(), SoleDevice(), lambda i: i, 64**-0.5)
    tokens, rows = torch.arange(5, 5 + len(CONTEXTS)), torch.arange(len(CONTEXTS))
    return model.forward(tokens, torch.from_numpy(positions_of(layout)), attention, SingleDevice(), rows), pool


@pytest.mark.parametrize("weight_format", ["none", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_one_call_gives_what_the_layers_give(name: str, dtype: torch.dtype, weight_format: str, tmp_path: Path) -> None:
    if not isinstance(cpu_backend(), NativeCpuBackend):
        pytest.skip("no kernels here: no compiler, or not x86-64")
    make_model(CONFIGS[name]).save_pretrained(tmp_path)
    model = load(tmp_path, dtype, weight_format)
    if model.decoder is None:
        pytest.skip(f"no kernel multiplies {dtype} here")
    together, pool = step(model, dtype)
    model.decoder = None
    in_turn, expected = step(model, dtype)
    assert torch.equal(pool.k_LGNK, expected.k_LGNK) and torch.equal(pool.v_LGNK, expected.v_LGNK)
    assert torch.equal(together, in_turn)


HELD = {"a": (0, 30, 7), "b": (1, 12, 0), "c": (0, 0, 55), "d": (1, 0, 0), "e": (0, 9, 9), "f": (0, 100, 3)}
"""Request: (master, tokens on instance 0, tokens on instance 1). Who asks instance 1: not rows side by side."""


def step_of_two(models: list[LlamaModel], dtype: torch.dtype) -> list[torch.Tensor]:
    """Both instances are masters, and hold context of each other's requests; each one's logits."""
    generator = torch.Generator().manual_seed(2)
    pools = [KVPool(3, 2, 512, 64, dtype, CPU) for _ in models]
    segments = []
    for number, (name, (master, first, second)) in enumerate(HELD.items()):
        stored = first + second
        kv = torch.randn(2, 3, 2, stored, 64, generator=generator).to(dtype)
        for pool, (start, end) in zip(pools, ((0, first), (first, stored)), strict=True):
            if end > start:
                pool.insert(number, [(start, end)], kv[:, :, :, start:end])
        context = tuple((i, tokens) for i, tokens in enumerate((first, second)) if tokens)
        store = (KVRange(master, stored, stored + 1),)
        segments.append(Segment(name, stored, 1, (master,), store, context, residence=number))
    batch = RunBatch(0, (0, 1), tuple(segments))
    logits = [torch.empty(0)] * 2
    with closing(MeetingPlace()) as place:
        transports = [SharedMemoryTransport(place.path, rank, 2) for rank in range(2)]

    def run(rank: int) -> None:
        layout = plan_layout(batch, rank, pools[rank], CPU)
        attention = ElasticAttention(layout, pools[rank], cpu_backend(), transports[rank], lambda i: i, 64**-0.5)
        rows = torch.arange(layout.num_rows)
        positions = torch.from_numpy(positions_of(layout))
        logits[rank] = models[rank].forward(rows + 5, positions, attention, SingleDevice(), rows)

    in_threads(run, range(2), deadlock_s=60)
    return logits


@pytest.mark.parametrize("master", [None, 0], ids=["two masters", "one master"])
def test_two_instances_exchange_the_same_in_one_call_or_layer_by_layer(
    master: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not isinstance(cpu_backend(), NativeCpuBackend):
        pytest.skip("no kernels here: no compiler, or not x86-64")
    if master is not None:  # the other instance only answers
        monkeypatch.setattr(sys.modules[__name__], "HELD", {n: (master, a, b) for n, (_, a, b) in HELD.items()})
    make_model(CONFIGS["llama"]).save_pretrained(tmp_path)
    together, in_turn = (load(tmp_path, torch.float32, "none") for _ in range(2))
    in_turn.decoder = None
    expected = step_of_two([in_turn, in_turn], torch.float32)
    for models in ([together, together], [together, in_turn], [in_turn, together]):
        for got, wanted in zip(step_of_two(models, torch.float32), expected, strict=True):
            assert torch.equal(got, wanted)


def test_a_weight_that_our_kernels_do_not_read_leaves_the_layers_apart(tmp_path: Path) -> None:
    """Sizes that are no multiple of what the kernels take."""
    odd = LlamaConfig(**{**SIZES, "hidden_size": 72, "intermediate_size": 70})
    make_model(odd).save_pretrained(tmp_path)
    model = load(tmp_path, torch.float32, "none")
    assert model.decoder is None
    logits, _ = step(model, torch.float32)
    assert logits.shape == (len(CONTEXTS), 128)
