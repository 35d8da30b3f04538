"""Medha's policy (arXiv 2409.17264): ranks by relative slack, and lets short prompts share a long one's iteration."""

from __future__ import annotations

from dataclasses import dataclass

from longspan.core.policies.chunked.adaptive import AdaptiveChunks
from longspan.core.policies.chunked.priority import N, Standing, lars
from longspan.errors import ConfigError


class Medha(AdaptiveChunks):
    """Medha's: adaptive chunks by length-aware relative slack (LARS), space sharing, and KV-cache parallelism."""

    @dataclass(frozen=True)
    class Options(AdaptiveChunks.Options):
        """max_space_share: of an iteration, at most so much goes from a long prompt's chunk to short ones."""

        max_space_share: float = 0.4

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0.0 <= self.max_space_share < 1.0:
                raise ConfigError(
                    f"max_space_share is {self.max_space_share}, but must be at least 0 and below 1"
                )

    name = "medha"
    options: Options

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.max_space_share = self.options.max_space_share

    def rule(self, standing: Standing[N]) -> N:
        return lars(standing)
