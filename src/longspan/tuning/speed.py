"""How fast workers of a machine are, by their threads, as measured with a few iterations; and what follows for shapes.

Times in seconds, of a whole model on one worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from longspan.core.costs.cost_model import DecodeCoefficients, FittedCostModel, PrefillCoefficients
from longspan.errors import ConfigError
from longspan.tuning.shapes import Shape

HOST_S = 1.5e-3
"""Of an iteration with a chunk, until the next is decided on and sent (assumed). A pipeline computes meanwhile."""
HANDOVER_S = 5e-4
"""Of an iteration, from one pipeline stage to the next (assumed)."""
EXCHANGE_S = 2e-4
"""Of one exchange between two instances, in one layer (assumed)."""
MIGRATION_S, MIGRATION_TOKEN_S = 2e-3, 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpeed:
    """The times of one worker of so many threads.

    decode_s: of a step of one request with little context; decodes_s: of `num_decodes` of them.
    short_s: of a chunk of `short_tokens` alone; chunk_s: of one of `chunk_tokens`; later_chunk_s: of the same, behind
        `context_tokens`.
    crowding: how many times longer a chunk takes while as many such workers as there are cores for do the same.
    """

    threads: int
    decode_s: float
    num_decodes: int
    decodes_s: float
    short_tokens: int
    short_s: float
    chunk_tokens: int
    chunk_s: float
    context_tokens: int
    later_chunk_s: float
    crowding: float = 1.0

    def __post_init__(self) -> None:
        times = (self.decode_s, self.decodes_s, self.short_s, self.chunk_s, self.later_chunk_s, self.crowding)
        if min(times) <= 0.0 or not self.short_tokens < self.chunk_tokens or self.num_decodes < 2:
            raise ConfigError("a worker's speed was not measured")  # a damaged file: measured anew

    @property
    def pair_s(self) -> float:
        """Of a query and a key, in all layers."""
        extra_s = max(0.0, self.later_chunk_s - self.chunk_s)
        return extra_s / (2 * self.chunk_tokens * self.context_tokens)

    @property
    def token_s(self) -> float:
        """Of one more token in a chunk, whatever its context."""
        tokens = self.chunk_tokens - self.short_tokens
        pairs = self.chunk_tokens**2 - self.short_tokens**2
        return max(1e-9, (self.chunk_s - self.short_s - pairs * self.pair_s) / tokens)

    @property
    def fixed_s(self) -> float:
        """Of a chunk, whatever its length."""
        return max(self.decode_s, self.short_s - self.short_tokens * self.token_s)

    @property
    def request_s(self) -> float:
        """Of one more request that decodes."""
        return max(0.0, (self.decodes_s - self.decode_s) / (self.num_decodes - 1))


def modelled(shape: Shape, speeds: Sequence[WorkerSpeed], num_layers: int) -> FittedCostModel:
    """Return what iterations would take in such a shape. speeds: one is of its threads.

    With several workers it is as if the others were always at work, too.
    """
    speed = next(speed for speed in speeds if speed.threads == shape.threads)
    crowding = max(1.0, speed.crowding) if shape.workers > 1 else 1.0
    between_s = (shape.pp - 1) * HANDOVER_S
    host_s = HOST_S if shape.pp == 1 else 0.0
    numbers = range(1, shape.instances + 1)

    def prefill(instances: int) -> PrefillCoefficients:
        rounds_s = (instances - 1) * num_layers * EXCHANGE_S
        return PrefillCoefficients(
            num_instances=instances, fixed=crowding * speed.fixed_s + between_s + host_s + rounds_s,
            per_token=crowding * speed.token_s / instances, per_pair=crowding * speed.pair_s / instances,
        )  # fmt: skip

    def decode(instances: int, masters: int) -> DecodeCoefficients:
        exchange_s = num_layers * EXCHANGE_S if instances > 1 else 0.0
        return DecodeCoefficients(
            num_instances=instances, num_masters=masters,
            fixed=crowding * (speed.decode_s - speed.request_s) + between_s + exchange_s,
            per_request=crowding * speed.request_s / masters, per_context_token=0.0,
        )  # fmt: skip

    return FittedCostModel(
        prefill_coefficients=tuple(prefill(number) for number in numbers),
        decode_coefficients=tuple(decode(number, masters) for number in numbers for masters in sorted({1, number})),
        migration_fixed=MIGRATION_S, migration_per_token=MIGRATION_TOKEN_S,
    )  # fmt: skip
