"""How far a model's rotary embedding reaches: RoPE scaling, as a model's config spells it, or the one who serves it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from longspan.errors import ConfigError, LongspanError
from longspan.layers.rope_config import RopeConfig
from longspan.models.fields import Fields

KINDS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
_MOST_TOKENS = (1 << 31) - 1
_NAMES = ("rope_type", "type", "rope_theta")
_KNOWN: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale",
             "mscale_all_dim", "truncate"),
    "longrope": ("factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor"),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
}  # fmt: skip
"""What transformers reads for each kind."""


@dataclass(frozen=True, slots=True)
class Reach:
    """The rotary embedding, and how many tokens it is for.

    limit: tokens that the model is served up to, unless something else limits it. stretches_to: tokens that it may be
    served up to, where its config leaves open whether `limit` is the length before scaling or after it.
    """

    rope: RopeConfig
    limit: int
    stretches_to: int


@dataclass(frozen=True, slots=True)
class Plain:
    """What is there without scaling. original: the length before scaling, where it stands beside the scaling."""

    theta: float
    head_dim: int
    max_position_embeddings: int
    original: int | None = None


class SettingFields(Fields):
    """Fields that stand in a setting, not in a model's file."""

    def wrong(self, key: str, expected: str) -> LongspanError:
        return ConfigError(f"rope_scaling: {key!r} is {self.values.get(key)!r:.80}, but must be {expected}")

    def missing(self, key: str) -> LongspanError:
        return ConfigError(f"rope_scaling does not say {key!r}")


def parse_rope_scaling(text: str) -> SettingFields:
    """Read `--rope-scaling`. Raises ConfigError."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"rope_scaling is {text!r:.80}, which is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"rope_scaling is {text!r:.80}, but must be a JSON object such as {_EXAMPLE}")
    scaling = SettingFields(value, Path("--rope-scaling"))
    kind = kind_of(scaling)
    if kind not in KINDS:
        raise ConfigError(f"rope_scaling: the type {kind!r:.40} is not known; these are: {', '.join(KINDS)}")
    if unknown := sorted(value.keys() - {*_NAMES, *_KNOWN[kind]}):
        known = ", ".join(("rope_theta", *_KNOWN[kind]))
        raise ConfigError(f"rope_scaling: {kind} has no {unknown[0]!r:.40}; these are known: {known}")
    return scaling


_EXAMPLE = '{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}'


def kind_of(scaling: Fields) -> str:
    return scaling.text("rope_type", scaling.text("type", "default"))


def reach_of(scaling: Fields, plain: Plain) -> Reach:
    """Return what a scaling of one of `KINDS` makes of a model. Raises ModelError, or ConfigError for a setting."""
    plain = Plain(
        scaling.number("rope_theta", plain.theta), plain.head_dim, plain.max_position_embeddings, plain.original
    )
    return _MAKERS[kind_of(scaling)](scaling, plain)


def by_setting(text: str, plain: Plain) -> Reach:
    """Return what `--rope-scaling` makes of a model, in place of what its own config says. Raises ConfigError.

    Who sets a scaling wants its length, so nothing is left open.
    """
    scaled = reach_of(parse_rope_scaling(text), plain)
    longest = max(scaled.limit, scaled.stretches_to)
    return Reach(scaled.rope, longest, longest)


def _default(scaling: Fields, plain: Plain) -> Reach:
    return Reach(RopeConfig(theta=plain.theta), plain.max_position_embeddings, 0)


def _linear(scaling: Fields, plain: Plain) -> Reach:
    factor = scaling.number("factor")
    rope = RopeConfig(theta=plain.theta, kind="linear", factor=factor)
    return Reach(rope, plain.max_position_embeddings, _times(plain.max_position_embeddings, factor))


def _dynamic(scaling: Fields, plain: Plain) -> Reach:
    if plain.head_dim < 4:
        raise scaling.wrong(_name(scaling), f"another with a head_dim of {plain.head_dim}")
    factor, original = scaling.number("factor"), plain.max_position_embeddings
    rope = RopeConfig(theta=plain.theta, kind="dynamic", factor=factor, original_max_position_embeddings=original)
    return Reach(rope, original, _times(original, factor))


def _llama3(scaling: Fields, plain: Plain) -> Reach:
    factor = scaling.number("factor")
    low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    if low >= high:
        raise scaling.wrong("low_freq_factor", f"below high_freq_factor, which is {high}")
    original = plain.original or scaling.size("original_max_position_embeddings")
    rope = RopeConfig(
        theta=plain.theta, kind="llama3", factor=factor, low_freq_factor=low, high_freq_factor=high,
        original_max_position_embeddings=original,
    )  # fmt: skip
    return Reach(rope, plain.max_position_embeddings, _times(original, factor))


def _yarn(scaling: Fields, plain: Plain) -> Reach:
    original = _original(scaling, plain)
    if "factor" not in scaling.values:
        raise scaling.missing("factor")
    factor = scaling.number("factor", plain.max_position_embeddings / original)  # null: as the lengths say
    fast, slow = scaling.number("beta_fast", 32.0), scaling.number("beta_slow", 1.0)
    if fast < slow:
        raise scaling.wrong("beta_fast", f"at least beta_slow, which is {slow}")
    if plain.theta <= 1.0:
        raise scaling.wrong("rope_theta", "above 1")
    rope = RopeConfig(
        theta=plain.theta, kind="yarn", factor=factor, original_max_position_embeddings=original, beta_fast=fast,
        beta_slow=slow, truncate=scaling.flag("truncate", True), attention_factor=_yarn_attention(scaling, factor),
    )  # fmt: skip
    return Reach(rope, max(plain.max_position_embeddings, _times(original, factor)), 0)


def _yarn_attention(scaling: Fields, factor: float) -> float:
    """The paper's 0.1 ln(factor) + 1; with both mscale and mscale_all_dim, DeepSeek's quotient of two of these."""
    if factor <= 1:
        by_factor = 1.0
    elif scaling.get("mscale") and scaling.get("mscale_all_dim"):
        over, under = (0.1 * scaling.number(name) * math.log(factor) + 1.0 for name in ("mscale", "mscale_all_dim"))
        by_factor = over / under
    else:
        by_factor = 0.1 * math.log(factor) + 1.0
    return scaling.number("attention_factor", by_factor)


def _longrope(scaling: Fields, plain: Plain) -> Reach:
    original = _original(scaling, plain)
    if original < 2:
        raise scaling.wrong("original_max_position_embeddings", "at least 2")
    factor = scaling.number("factor", plain.max_position_embeddings / original)
    by_factor = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    short, long = (_divisors(scaling, name, plain.head_dim) for name in ("short_factor", "long_factor"))
    rope = RopeConfig(
        theta=plain.theta, kind="longrope", factor=factor, original_max_position_embeddings=original, divisors=short,
        long_divisors=long, attention_factor=scaling.number("attention_factor", by_factor),
    )  # fmt: skip
    stretches_to = _times(original, factor) if scaling.get("factor") is not None else 0
    return Reach(rope, plain.max_position_embeddings, stretches_to)


def _divisors(scaling: Fields, name: str, head_dim: int) -> tuple[float, ...]:
    divisors = scaling.numbers(name)
    if len(divisors) != head_dim // 2:
        raise scaling.wrong(name, f"a list of {head_dim // 2} numbers, one for each frequency")
    return divisors


def _original(scaling: Fields, plain: Plain) -> int:
    return plain.original or scaling.size("original_max_position_embeddings", plain.max_position_embeddings)


def _name(scaling: Fields) -> str:
    return "rope_type" if scaling.get("rope_type") is not None else "type"


def _times(tokens: int, factor: float) -> int:
    return int(min(tokens * factor, _MOST_TOKENS))


_MAKERS: dict[str, Callable[[Fields, Plain], Reach]] = {
    "default": _default, "linear": _linear, "dynamic": _dynamic, "yarn": _yarn, "longrope": _longrope,
    "llama3": _llama3,
}  # fmt: skip
