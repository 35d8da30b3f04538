"""Rotary position embedding, in halves (GPT-NeoX style): dimension i turns together with i + K/2.

Angles are computed for the positions at hand, once for all layers of a forward pass: that costs microseconds,
and leaves no table whose length could limit the context.

Shape suffixes: T tokens, H heads, K head_dim, R = K/2 frequencies.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from longspan.layers.rope_config import RopeConfig


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """Return radians per position of each of the K/2 rotating pairs, fp32."""
    exponents_R = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies_R = 1.0 / (rope.theta**exponents_R)
    if rope.kind == "linear":
        return frequencies_R / rope.factor
    if rope.kind == "llama3":
        return _llama3(frequencies_R, rope)
    if rope.kind == "per_frequency":
        return frequencies_R / torch.tensor(rope.divisors, dtype=torch.float32)
    return frequencies_R


def _llama3(frequencies_R: Tensor, rope: RopeConfig) -> Tensor:
    """Waves that turn fewer than `low_freq_factor` times within the original context are stretched by
    `factor`, those that turn more than `high_freq_factor` times are kept, the ones in between are blended."""
    original_context = rope.original_max_position_embeddings
    wavelengths_R = 2 * math.pi / frequencies_R
    stretched_R = frequencies_R / rope.factor
    kept_R = (original_context / wavelengths_R - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    blended_R = (1 - kept_R) * frequencies_R / rope.factor + kept_R * frequencies_R
    is_long_R = wavelengths_R > original_context / rope.low_freq_factor
    is_short_R = wavelengths_R < original_context / rope.high_freq_factor
    return torch.where(is_long_R, stretched_R, torch.where(is_short_R, frequencies_R, blended_R))


def rotary_angles(positions_T: Tensor, frequencies_R: Tensor) -> tuple[Tensor, Tensor]:
    """Return (cos, sin) of every token's angles, each [T, 1, R] in fp32: ready to broadcast over heads."""
    angles_T1R = positions_T.float()[:, None, None] * frequencies_R
    return angles_T1R.cos(), angles_T1R.sin()


def rotate(x_THK: Tensor, cos_T1R: Tensor, sin_T1R: Tensor) -> Tensor:
    """Turn every head by its token's angles; computed in fp32, returned in x's dtype."""
    first_THR, second_THR = x_THK.float().chunk(2, dim=-1)
    return torch.cat(
        (first_THR * cos_T1R - second_THR * sin_T1R, second_THR * cos_T1R + first_THR * sin_T1R), dim=-1
    ).to(x_THK.dtype)
