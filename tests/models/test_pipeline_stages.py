"""A model cut into pipeline stages: what each stage holds, and that together they are the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longspan.distributed.tensor_parallel import SingleDevice
from longspan.models.config import load_model_config
from longspan.models.llama import LlamaModel
from longspan.models.sharding import TensorParallelShard
from longspan.models.weights import open_weights
from longspan.pipeline import PipelineStage, balanced_stages

from .tiny import CONFIGS, CPU, CausalAttention, make_model

TOKENS = torch.tensor([5, 80, 3, 41, 7, 9])


@pytest.mark.parametrize("name", ["llama", "llama-tied-9-over-3"])
@pytest.mark.parametrize("sizes", [(1, 2), (2, 1), (1, 1, 1)])
def test_stages_give_the_same_logits(tmp_path: Path, sizes: tuple[int, ...], name: str) -> None:
    make_model(CONFIGS[name]).save_pretrained(tmp_path)
    config = load_model_config(tmp_path)
    shard, tp = TensorParallelShard.of(config), SingleDevice()

    def load(stage: PipelineStage | None = None) -> LlamaModel:
        return LlamaModel.load(config, open_weights(tmp_path, config), shard, torch.float32, CPU, stage=stage)

    rows = torch.arange(len(TOKENS))
    whole = load().forward(TOKENS, rows, CausalAttention(), tp, rows)
    stages = [load(PipelineStage.of(number, sizes)) for number in range(len(sizes))]
    assert [stage.embedding_VD is None for stage in stages] == [number > 0 for number in range(len(sizes))]
    assert [stage.head is None for stage in stages] == [number < len(sizes) - 1 for number in range(len(sizes))]
    assert [len(stage.layers) for stage in stages] == list(sizes)
    with torch.inference_mode():
        x_TD = stages[0].embed(TOKENS, tp)
        for stage in stages:
            x_TD = stage.run_layers(x_TD, rows, CausalAttention(), tp)
        assert torch.equal(stages[-1].logits(x_TD, tp), whole)


@given(
    st.integers(1, 6).flatmap(lambda stages: st.tuples(st.just(stages), st.integers(stages, 24))),
    *(st.floats(0.0, 8.0) for _ in range(2)),
)
def test_the_slowest_stage_is_as_fast_as_can_be(shape: tuple[int, int], first_s: float, last_s: float) -> None:
    """Against every way to cut: the slowest stage's time can be reached, and not beaten."""
    num_stages, num_layers = shape
    sizes = balanced_stages(num_layers, num_stages, 1.0, first_s, last_s)
    assert sum(sizes) == num_layers and min(sizes) >= 1 and len(sizes) == num_stages
    extra = [first_s * (n == 0) + last_s * (n == num_stages - 1) for n in range(num_stages)]
    slowest = max(size + more for size, more in zip(sizes, extra, strict=True))
    # With every stage below the slowest's time, there would be too few layers in all.
    faster = sum(max(0, _layers_below(slowest - more)) for more in extra)
    assert faster < num_layers or min(_layers_below(slowest - more) for more in extra) < 1


def _layers_below(seconds: float) -> int:
    """The most layers of one second each that take clearly less."""
    return int(-(-(seconds - 1e-9) // 1)) - 1
