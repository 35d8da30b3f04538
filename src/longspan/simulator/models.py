"""Models to simulate, by name: their shapes alone, as their config.json says."""

from __future__ import annotations

from longspan.core.costs.analytic import ModelShape
from longspan.errors import ConfigError
from longspan.simulator.fleet import SimulatedModel


def _model(
    name: str, max_model_len: int, layers: int, hidden: int, intermediate: int, heads: int, kv_heads: int, vocab: int,
    *, head_dim: int = 128, tied: bool = False,
) -> SimulatedModel:  # fmt: skip
    shape = ModelShape(
        num_layers=layers, hidden_size=hidden, intermediate_size=intermediate, num_heads=heads,
        num_kv_heads=kv_heads, head_dim=head_dim, vocab_size=vocab, weight_bytes=2.0, kv_bytes=2.0,
    )  # fmt: skip
    return SimulatedModel(name=name, shape=shape, max_model_len=max_model_len, tied=tied)


# name, longest context, layers, hidden, intermediate, query heads, KV heads, vocabulary; weights and KV in bfloat16.
# The Llama 3 ones with RoPE scaled, as Medha runs them (section 6.1).
MODELS = {
    model.name: model
    for model in (
        _model("llama-2-7b", 4096, 32, 4096, 11008, 32, 32, 32000),
        _model("lwm-1m", 1_048_576, 32, 4096, 11008, 32, 32, 32000),
        _model("llama-3-8b", 10_485_760, 32, 4096, 14336, 32, 8, 128256),
        _model("llama-3-70b", 10_485_760, 80, 8192, 28672, 64, 8, 128256),
        _model("qwen2.5-7b", 131_072, 28, 3584, 18944, 28, 4, 152064),
        _model("smollm2-135m", 8192, 30, 576, 1536, 9, 3, 49152, head_dim=64, tied=True),
    )
}


def known_model(name: str) -> SimulatedModel:
    """Raises ConfigError."""
    if name not in MODELS:
        raise ConfigError(f"there is no model {name!r}; there are: {', '.join(MODELS)}")
    return MODELS[name]
