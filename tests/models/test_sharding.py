"""Shards cover the model exactly once (KV heads possibly more often), for any size that is allowed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.errors import ConfigError
from longspan.layers.rope_config import RopeConfig
from longspan.models.config import ModelConfig
from longspan.models.sharding import ALIGNMENT, TensorParallelShard, width


def make_config(num_heads: int = 9, num_kv_heads: int = 3, intermediate: int = 1536,
                vocab: int = 49152) -> ModelConfig:  # fmt: skip
    return ModelConfig(
        architecture="LlamaForCausalLM", num_layers=2, hidden_size=64, num_heads=num_heads,
        num_kv_heads=num_kv_heads, head_dim=8, intermediate_size=intermediate, vocab_size=vocab,
        rms_norm_eps=1e-5, rope=RopeConfig(), max_position_embeddings=128,
    )  # fmt: skip


def test_smollm2_on_two_devices() -> None:
    first, second = (TensorParallelShard.of(make_config(), rank, 2) for rank in range(2))
    assert (first.num_query_heads, first.num_kv_heads) == (6, 2)
    assert (second.num_query_heads, second.num_kv_heads) == (3, 1)
    assert width(first.intermediate) == width(second.intermediate) == 768
    assert first.vocab_sizes == second.vocab_sizes == (24576, 24576)


@given(kv=st.integers(1, 12), group=st.integers(1, 8), tp=st.integers(1, 16),
       intermediate=st.integers(16, 5000), vocab=st.integers(16, 5000))  # fmt: skip
def test_shards_partition_the_model(kv: int, group: int, tp: int, intermediate: int, vocab: int) -> None:
    config = make_config(kv * group, kv, intermediate, vocab)
    try:
        shards = [TensorParallelShard.of(config, rank, tp) for rank in range(tp)]
    except ConfigError:
        assert tp > kv and (tp % kv or group % (tp // kv))
        return
    for total, parts in (
        (config.num_heads, [shard.query_heads for shard in shards]),
        (intermediate, [shard.intermediate for shard in shards]),
        (vocab, [shard.vocab for shard in shards]),
    ):
        assert [parts[0].start, *(part.stop for part in parts)] == [*(part.start for part in parts), total]
        assert all(width(part) > 0 for part in parts)
    for shard in shards:
        heads = range(shard.query_heads.start, shard.query_heads.stop)
        assert {head // group for head in heads} == set(range(shard.kv_heads.start, shard.kv_heads.stop))
        assert shard.num_query_heads % shard.num_kv_heads == 0
        assert list(shard.vocab_sizes) == [width(other.vocab) for other in shards]
        if intermediate >= ALIGNMENT * tp:
            assert shard.intermediate.start % ALIGNMENT == 0


@pytest.mark.parametrize("tp", [4, 5, 6, 8, 27])
def test_impossible_splits_are_refused_with_the_numbers(tp: int) -> None:
    with pytest.raises(ConfigError, match=f"tp is {tp}, but 9 query heads over 3 KV heads"):
        TensorParallelShard.of(make_config(), 0, tp)


def test_three_query_heads_each_on_a_device_of_its_own() -> None:
    shards = [TensorParallelShard.of(make_config(), rank, 9) for rank in range(9)]
    assert [shard.query_heads.start for shard in shards] == list(range(9))
    assert [shard.kv_heads.start for shard in shards] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_rank_outside_the_group_and_a_model_too_small() -> None:
    with pytest.raises(ConfigError, match="rank 2 is not one of 2"):
        TensorParallelShard.of(make_config(), 2, 2)
    with pytest.raises(ConfigError, match="intermediate_size is only 2"):
        TensorParallelShard.of(make_config(intermediate=2), 0, 3)
