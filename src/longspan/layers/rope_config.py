"""Which rotary embedding a model was trained with. No torch here: `layers.rotary` computes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RopeKind = Literal["default", "linear", "llama3", "per_frequency"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding: frequency i is theta^(-2i/head_dim), then changed as `kind` says.

    linear: all divided by `factor`.
    llama3: long waves divided by `factor`, short ones kept, blended in between (Llama 3.1).
    per_frequency: frequency i divided by `divisors[i]` (how GGUF files store llama3).
    """

    theta: float = 10000.0
    kind: RopeKind = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    divisors: tuple[float, ...] = ()
