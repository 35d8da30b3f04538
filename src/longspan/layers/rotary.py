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


class Rotary:
    """The angles of one model's tokens."""

    def __init__(self, rope: RopeConfig, head_dim: int, device: torch.device) -> None:
        self.rope = rope
        self.exponents_R = _exponents(head_dim).to(device)
        self.frequencies_R = inverse_frequencies(rope, head_dim).to(device)
        self.long_R = self.frequencies_R
        if rope.kind == "longrope":
            self.long_R = _longrope(_exponents(head_dim), rope, rope.long_divisors).to(device)

    def angles(self, positions_T: Tensor, lengths_T: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return (cos, sin) of every token's angles, each [T, 1, R] in fp32: ready to broadcast over heads.

        lengths_T: the length of each token's request when the token is computed (`attention.layout.lengths_of`), for
            models whose frequencies depend on it; None: all tokens are of one sequence, which ends with them.
        """
        if not self.rope.depends_on_length:
            return rotary_angles(positions_T, self.frequencies_R, self.rope.attention_factor)
        if lengths_T is None:
            lengths_T = (positions_T.max() + 1).expand(len(positions_T))
        is_long_T1 = (lengths_T > self.rope.original_max_position_embeddings)[:, None]
        long = self._dynamic(lengths_T) if self.rope.kind == "dynamic" else self.long_R
        frequencies_TR = torch.where(is_long_T1, long, self.frequencies_R)
        return rotary_angles(positions_T, frequencies_TR, self.rope.attention_factor)

    def _dynamic(self, lengths_T: Tensor) -> Tensor:
        """[T, R], with theta raised so that the longest wave reaches as much further as the request is longer."""
        rope, head_dim = self.rope, 2 * len(self.exponents_R)
        original = rope.original_max_position_embeddings
        stretch_T = rope.factor * lengths_T.clamp(min=original) / original - (rope.factor - 1)
        thetas_T = rope.theta * stretch_T ** (head_dim / (head_dim - 2))
        return 1.0 / thetas_T[:, None] ** self.exponents_R


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """Return radians per position of each of the K/2 rotating pairs, fp32; for requests that are within the original
    context, where the frequencies depend on the length."""
    exponents_R = _exponents(head_dim)
    frequencies_R = 1.0 / (rope.theta**exponents_R)
    if rope.kind == "linear":
        return frequencies_R / rope.factor
    if rope.kind == "llama3":
        return _llama3(frequencies_R, rope)
    if rope.kind == "per_frequency":
        return frequencies_R / torch.tensor(rope.divisors, dtype=torch.float32)
    if rope.kind == "yarn":
        return _yarn(exponents_R, rope)
    if rope.kind == "longrope":
        return _longrope(exponents_R, rope, rope.divisors)
    return frequencies_R


def _exponents(head_dim: int) -> Tensor:
    return torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim


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


def _longrope(exponents_R: Tensor, rope: RopeConfig, divisors: tuple[float, ...]) -> Tensor:
    return 1.0 / (torch.tensor(divisors, dtype=torch.float32) * rope.theta**exponents_R)


def _yarn(exponents_R: Tensor, rope: RopeConfig) -> Tensor:
    """Between the frequencies that turn `beta_fast` and `beta_slow` times, what is kept of them falls as a ramp."""
    waves_R = rope.theta**exponents_R
    first, last = (_index_of_turns(turns, exponents_R, rope) for turns in (rope.beta_fast, rope.beta_slow))
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * len(exponents_R) - 1)
    if first == last:
        last += 0.001
    ramp_R = ((torch.arange(len(exponents_R), dtype=torch.float32) - first) / (last - first)).clamp(0, 1)
    kept_R = 1 - ramp_R
    return 1.0 / (rope.factor * waves_R) * (1 - kept_R) + 1.0 / waves_R * kept_R


def _index_of_turns(turns: float, exponents_R: Tensor, rope: RopeConfig) -> float:
    """Return which frequency turns so many times within the original context, between whole numbers."""
    head_dim = 2 * len(exponents_R)
    ratio = rope.original_max_position_embeddings / (turns * 2 * math.pi)
    return head_dim * math.log(ratio) / (2 * math.log(rope.theta))


def rotary_angles(positions_T: Tensor, frequencies: Tensor, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return (cos, sin) of every token's angles times `factor`, each [T, 1, R] in fp32.

    frequencies: [R], or [T, R] where each token has its own.
    """
    angles_TR = positions_T.float()[:, None] * frequencies
    angles_T1R = angles_TR[:, None]
    if factor == 1.0:
        return angles_T1R.cos(), angles_T1R.sin()
    return angles_T1R.cos() * factor, angles_T1R.sin() * factor


def rotate(x_THK: Tensor, cos_T1R: Tensor, sin_T1R: Tensor) -> Tensor:
    """Turn every head by its token's angles; computed in fp32, returned in x's dtype."""
    first_THR, second_THR = x_THK.float().chunk(2, dim=-1)
    return torch.cat(
        (first_THR * cos_T1R - second_THR * sin_T1R, second_THR * cos_T1R + first_THR * sin_T1R), dim=-1
    ).to(x_THK.dtype)
