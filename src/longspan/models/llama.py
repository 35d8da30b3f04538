"""Llama and its relatives: Llama 2 and 3, SmolLM, Mistral, Qwen2 (biases on q, k, v), Qwen3 (norms on q, k).

The model computes one device's share of one instance. Whatever crosses devices comes from outside:
`attention` knows where the KV cache lives, `tp` sums over the devices of the instance.

Shape suffixes: T tokens, E rows to emit, D hidden, H query heads, G KV heads, h = H + G, n = h + G,
K head_dim, R = K/2, I feed-forward width, V vocabulary. H, G, I and V are this rank's share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from longspan.attention.elastic import ElasticAttention
from longspan.distributed.tensor_parallel import TensorParallelGroup
from longspan.layers.elementwise import elementwise_for
from longspan.layers.embedding import embed, embed_share
from longspan.layers.linear import Linear
from longspan.layers.logits import settle_near_ties_
from longspan.layers.norm import rms_norm
from longspan.layers.quantized_linear import QuantizedMatrix
from longspan.layers.rotary import Rotary
from longspan.models.architecture import ModelConfig
from longspan.models.sharding import TensorParallelShard, width
from longspan.models.stored_shapes import check_shapes
from longspan.models.weights import CheckedReader, MatrixPart, WeightFormat, WeightSource
from longspan.native.decoder import NativeDecoder
from longspan.pipeline import PipelineStage

Attention = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""attention(layer, q_THK, k_TGK, v_TGK) -> out_THK. q, k are rotated; all are strided views; T may be 0."""


@dataclass(frozen=True, slots=True)
class LlamaLayer:
    """One decoder layer's weights."""

    attention_norm_D: Tensor
    qkv: Linear  # q, k and v stacked: D -> n K
    qk_norm_hK: Tensor | None  # Qwen3: one row for each of the h heads
    attention_out: Linear  # H K -> D
    mlp_norm_D: Tensor
    gate_up: Linear  # gate and up stacked: D -> 2 I
    down: Linear  # I -> D


@dataclass(frozen=True, slots=True)
class LlamaHead:
    """The step from the residual stream to logits. plain_VD: the weight of `linear`, where its results are rounded so
    that near ties have to be settled."""

    norm_D: Tensor
    linear: Linear
    plain_VD: Tensor | None


class LlamaModel:
    """A model, or one pipeline stage of it. Immutable once loaded: threads may share one.

    embedding_VD: None but in the first stage. layers: of this stage, numbered from 0. head: None but in the last stage.
    """

    def __init__(
        self,
        config: ModelConfig,
        shard: TensorParallelShard,
        embedding_VD: Tensor | None,
        layers: list[LlamaLayer],
        head: LlamaHead | None,
    ) -> None:
        self.config = config
        self.shard = shard
        self.embedding_VD = embedding_VD
        self.layers = layers
        self.head = head
        sizes = config.hidden_size, config.head_dim, width(shard.intermediate)
        self.like = layers[0].attention_norm_D  # of the model's dtype, on its device
        self.ops = elementwise_for(self.like.device, self.like.dtype, *sizes)
        self.rotary = Rotary(config.rope, config.head_dim, self.like.device)
        # A decode step runs all layers in one call, where it can; `run_layers` says what they do.
        self.decoder = NativeDecoder.of(
            layers, shard.num_query_heads, shard.num_kv_heads, config.head_dim, width(shard.intermediate),
            config.rms_norm_eps,
        )  # fmt: skip

    @classmethod
    def load(
        cls,
        config: ModelConfig,
        source: WeightSource,
        shard: TensorParallelShard,
        dtype: torch.dtype,
        device: torch.device,
        weight_format: WeightFormat = "none",
        stage: PipelineStage | None = None,
        on_part: Callable[[int, int], None] = lambda done, total: None,
    ) -> LlamaModel:
        """Read this rank's share of the weights, and no more. stage: None is the whole model.

        on_part: hears (parts read, parts in all), from 0 on: the layers, and what is around them as one.

        Embeddings are looked up in a plain table, whatever the weight format: few of its rows are read in a step.
        """
        read = CheckedReader(source, dtype, device, weight_format)
        stage = stage or PipelineStage(range(config.num_layers))
        check_shapes(config, source, stage)
        hidden, vocab, tied = config.hidden_size, width(shard.vocab), config.tie_word_embeddings
        embedding_VD, head = None, None
        parts = 1 + len(stage.layers)
        on_part(0, parts)
        if stage.is_last or (stage.is_first and tied):
            name = "model.embed_tokens.weight" if tied else "lm_head.weight"
            weight = read.matrix(MatrixPart(name, vocab, hidden, rows=shard.vocab))
            head = _load_head(config, read, weight) if stage.is_last else None
            embedding_VD = read.plain(weight) if stage.is_first else None
        if stage.is_first and not tied:
            embedding_VD = read("model.embed_tokens.weight", vocab, hidden, rows=shard.vocab)
        layers = []
        for done, layer in enumerate(stage.layers, start=1):
            on_part(done, parts)
            layers.append(_load_layer(config, read, shard, f"model.layers.{layer}"))
        on_part(parts, parts)
        return cls(config, shard, embedding_VD, layers, head)

    @torch.inference_mode()
    def forward(
        self,
        token_ids_T: Tensor,
        positions_T: Tensor,
        attention: Attention,
        tp: TensorParallelGroup,
        emit_rows_E: Tensor,
    ) -> Tensor:
        """Run a whole model. Logits [E, whole vocabulary], fp32, of the tokens that follow the rows `emit_rows_E`."""
        x_TD = self.run_layers(self.embed(token_ids_T, tp), positions_T, attention, tp)
        return self.logits(x_TD[emit_rows_E], tp)

    def run_layers(
        self,
        x_TD: Tensor,
        positions_T: Tensor,
        attention: Attention,
        tp: TensorParallelGroup,
        on_last_layer: Callable[[], None] = lambda: None,
        lengths_T: Tensor | None = None,
    ) -> Tensor:
        """Return the residual stream (fp32) behind the layers of this stage. x_TD may be overwritten.

        With T = 0 nothing is computed here, but `attention` is called in every layer: it serves its peers.
        on_last_layer: called once, before the last layer, or before all of them where one call runs them.
        lengths_T: see `Rotary.angles`.
        """
        lone = None
        if self.decoder is not None and tp.size == 1 and isinstance(attention, ElasticAttention):
            lone = attention.lone_tokens()
        if not len(x_TD) and lone is None:
            return self._only_attend(x_TD, attention, on_last_layer)
        cos_T1R, sin_T1R = self.rotary.angles(positions_T, lengths_T)
        eps, ops = self.config.rms_norm_eps, self.ops
        if lone is not None:
            assert self.decoder is not None
            on_last_layer()
            mlp_TD = self.decoder(x_TD, cos_T1R, sin_T1R, lone)
            return x_TD + mlp_TD
        normed_TD = ops.rms_norm(x_TD, self.layers[0].attention_norm_D, eps)
        for i, layer in enumerate(self.layers):
            if i + 1 == len(self.layers):
                on_last_layer()
            q_THK, k_TGK, v_TGK = self._qkv(layer, normed_TD, cos_T1R, sin_T1R)
            attended_TD = tp.all_reduce_(layer.attention_out(attention(i, q_THK, k_TGK, v_TGK).flatten(1)))
            x_TD, normed_TD = ops.add_and_norm(x_TD, attended_TD, layer.mlp_norm_D, eps)
            mlp_TD = tp.all_reduce_(layer.down(ops.silu_and_mul(layer.gate_up(normed_TD))))
            if i + 1 < len(self.layers):
                x_TD, normed_TD = ops.add_and_norm(x_TD, mlp_TD, self.layers[i + 1].attention_norm_D, eps)
        return x_TD + mlp_TD

    def embed(self, token_ids_T: Tensor, tp: TensorParallelGroup) -> Tensor:
        """Return the residual stream, fp32 from here on: summed in bf16, sixty small updates would get lost."""
        assert self.embedding_VD is not None, "only the first stage embeds"
        if tp.size == 1:
            return embed(token_ids_T, self.embedding_VD).float()
        return tp.all_reduce_(embed_share(token_ids_T, self.embedding_VD, self.shard.vocab.start)).float()

    def _qkv(
        self, layer: LlamaLayer, normed_TD: Tensor, cos_T1R: Tensor, sin_T1R: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys are normalised and rotated together, as h = H + G heads."""
        H, h = self.shard.num_query_heads, self.shard.num_query_heads + self.shard.num_kv_heads
        qkv_TnK = layer.qkv(normed_TD).view(len(normed_TD), -1, self.config.head_dim)
        qk_ThK, v_TGK = qkv_TnK[:, :h], qkv_TnK[:, h:]
        if layer.qk_norm_hK is not None:
            qk_ThK = self.ops.rms_norm(qk_ThK, layer.qk_norm_hK, self.config.rms_norm_eps)
        qk_ThK = self.ops.rotate(qk_ThK, cos_T1R, sin_T1R)
        return qk_ThK[:, :H], qk_ThK[:, H:], v_TGK

    def logits(self, x_ED: Tensor, tp: TensorParallelGroup) -> Tensor:
        """Return logits [E, whole vocabulary], fp32, from rows of the residual stream behind the last layer."""
        assert self.head is not None, "only the last stage has the head"
        if not len(x_ED):
            return x_ED.new_empty((0, self.config.vocab_size))
        normed_ED = rms_norm(x_ED, self.head.norm_D.float(), self.config.rms_norm_eps)
        logits_EV = self.head.linear(normed_ED.to(self.like.dtype), torch.float32)
        if self.head.plain_VD is not None:
            settle_near_ties_(logits_EV, normed_ED, self.head.plain_VD)
        return tp.all_gather_vocab(logits_EV, self.shard.vocab_sizes)

    def _only_attend(self, x_TD: Tensor, attention: Attention, on_last_layer: Callable[[], None]) -> Tensor:
        q_THK = self.like.new_empty((0, self.shard.num_query_heads, self.config.head_dim))
        k_TGK = self.like.new_empty((0, self.shard.num_kv_heads, self.config.head_dim))
        for i in range(len(self.layers)):
            if i + 1 == len(self.layers):
                on_last_layer()
            attention(i, q_THK, k_TGK, k_TGK)
        return x_TD


def _load_head(config: ModelConfig, read: CheckedReader, weight: Tensor | QuantizedMatrix) -> LlamaHead:
    linear = read.linear(weight)
    rounds = linear.rounds and read.dtype != torch.float32
    return LlamaHead(read("model.norm.weight", config.hidden_size), linear, read.plain(weight) if rounds else None)


def _load_layer(
    config: ModelConfig, read: CheckedReader, shard: TensorParallelShard, prefix: str
) -> LlamaLayer:
    """Column-parallel in (rows of the weight), row-parallel out (columns): one all-reduce after each half."""
    hidden, width_I = config.hidden_size, width(shard.intermediate)
    query_rows, kv_rows = _rows(shard.query_heads, config.head_dim), _rows(shard.kv_heads, config.head_dim)
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    qkv_parts = [
        (f"{attention}.{x}_proj", rows) for x, rows in (("q", query_rows), ("k", kv_rows), ("v", kv_rows))
    ]

    qkv = read.matrix(*(MatrixPart(f"{name}.weight", width(rows), hidden, rows=rows) for name, rows in qkv_parts))
    qkv_bias = qk_norm_hK = None
    if config.qkv_bias:
        qkv_bias = torch.cat([read(f"{name}.bias", width(rows), rows=rows) for name, rows in qkv_parts])
    if config.qk_norm:
        qk_norm_hK = torch.cat(
            [
                read(f"{attention}.q_norm.weight", config.head_dim).expand(shard.num_query_heads, -1),
                read(f"{attention}.k_norm.weight", config.head_dim).expand(shard.num_kv_heads, -1),
            ]
        )
    gate_up = read.matrix(
        *(MatrixPart(f"{mlp}.{x}_proj.weight", width_I, hidden, rows=shard.intermediate) for x in ("gate", "up"))
    )
    attention_out = MatrixPart(f"{attention}.o_proj.weight", hidden, width(query_rows), columns=query_rows)
    down = MatrixPart(f"{mlp}.down_proj.weight", hidden, width_I, columns=shard.intermediate)
    return LlamaLayer(
        attention_norm_D=read(f"{prefix}.input_layernorm.weight", hidden),
        qkv=read.linear(qkv, qkv_bias),
        qk_norm_hK=qk_norm_hK,
        attention_out=read.linear(read.matrix(attention_out)),
        mlp_norm_D=read(f"{prefix}.post_attention_layernorm.weight", hidden),
        gate_up=read.linear(gate_up),
        down=read.linear(read.matrix(down)),
    )


def _rows(heads: slice, head_dim: int) -> slice:
    return slice(heads.start * head_dim, heads.stop * head_dim)
