"""Which tensors a stored model of the Llama family has, and of what shape: all are checked before any is read, since a
part of a larger one would fit as well.
"""

from __future__ import annotations

from collections.abc import Iterator

from longspan.errors import ModelError
from longspan.models.architecture import ModelConfig
from longspan.models.weights import WeightSource
from longspan.pipeline import PipelineStage


def check_shapes(config: ModelConfig, source: WeightSource, stage: PipelineStage) -> None:
    """Raises ModelError where a tensor of the stage is missing, or has another shape than the config says."""
    for name, shape in stored_shapes(config, stage):
        if (stored := source.shape(name)) != shape:
            raise ModelError(f"tensor {name} has shape {stored} where the config asks for {shape}")


def stored_shapes(config: ModelConfig, stage: PipelineStage) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield shapes by Hugging Face names, whole, whatever a rank reads of them."""
    hidden, vocab = config.hidden_size, config.vocab_size
    queries, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    if stage.is_first or (stage.is_last and config.tie_word_embeddings):
        yield "model.embed_tokens.weight", (vocab, hidden)
    if stage.is_last:
        yield "model.norm.weight", (hidden,)
        if not config.tie_word_embeddings:
            yield "lm_head.weight", (vocab, hidden)
    for layer in stage.layers:
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        for part, rows in (("q", queries), ("k", kv), ("v", kv)):
            yield f"{prefix}.self_attn.{part}_proj.weight", (rows, hidden)
            if config.qkv_bias:
                yield f"{prefix}.self_attn.{part}_proj.bias", (rows,)
            if config.qk_norm and part != "v":
                yield f"{prefix}.self_attn.{part}_norm.weight", (config.head_dim,)
        yield f"{prefix}.self_attn.o_proj.weight", (hidden, queries)
        yield f"{prefix}.mlp.gate_proj.weight", (config.intermediate_size, hidden)
        yield f"{prefix}.mlp.up_proj.weight", (config.intermediate_size, hidden)
        yield f"{prefix}.mlp.down_proj.weight", (hidden, config.intermediate_size)
