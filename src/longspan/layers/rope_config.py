"""Which rotary embedding a model was trained with. No torch here: `layers.rotary` computes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RopeKind = Literal["default", "linear", "llama3", "per_frequency", "yarn", "dynamic", "longrope"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding: frequency i is theta^(-2i/head_dim), then changed as `kind` says.

    linear: all divided by `factor`.
    llama3: long waves divided by `factor`, short ones kept, blended in between (Llama 3.1).
    per_frequency: frequency i divided by `divisors[i]` (how GGUF files store llama3).
    yarn: waves that turn fewer than `beta_slow` times within the original context are divided by `factor`, those that
        turn more than `beta_fast` times are kept, blended in between (YaRN, arXiv 2309.00071). truncate: the borders
        are rounded outwards to whole frequencies.
    dynamic: theta grows with the request's length beyond the original context (NTK-aware scaling).
    longrope: frequency i divided by `divisors[i]`, or by `long_divisors[i]` where the request is longer than the
        original context (arXiv 2402.13753).

    attention_factor: what sines and cosines are multiplied with, so attention's scores with its square.
    """

    theta: float = 10000.0
    kind: RopeKind = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    divisors: tuple[float, ...] = ()
    long_divisors: tuple[float, ...] = ()
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0

    @property
    def depends_on_length(self) -> bool:
        """Whether a token's KV depends on how long its request was when the token was computed.

        Two requests with the same first tokens have different KV for them then.
        """
        return self.kind in ("dynamic", "longrope")
