"""Which part of the model one tensor-parallel rank holds.

Heads are split by KV head, each with the query heads that read it. Sizes need not divide: of
SmolLM2's 9 query and 3 KV heads, the first of two devices holds 6 and 2, the second 3 and 1. With more
devices than KV heads, each KV head is copied to the devices that share its query heads.
"""

from __future__ import annotations

from dataclasses import dataclass

from longspan.errors import ConfigError
from longspan.models.architecture import ModelConfig

ALIGNMENT = 64  # matrix sizes that are multiples of this keep GEMM kernels on their fast path


@dataclass(frozen=True, slots=True)
class TensorParallelShard:
    """Slices of the whole model that belong to one rank, in units of heads, columns, and vocabulary rows."""

    tp_rank: int
    tp_size: int
    query_heads: slice
    kv_heads: slice
    intermediate: slice
    vocab: slice
    vocab_sizes: tuple[int, ...]
    """How many vocabulary rows each rank holds, in rank order."""

    @classmethod
    def of(cls, config: ModelConfig, tp_rank: int = 0, tp_size: int = 1) -> TensorParallelShard:
        """Raises ConfigError where the model cannot be split that far."""
        if not 0 <= tp_rank < tp_size:
            raise ConfigError(f"tensor-parallel rank {tp_rank} is not one of {tp_size}")
        query_heads, kv_heads = _heads(config, tp_rank, tp_size)
        vocab = [_part(config.vocab_size, rank, tp_size, "vocab_size") for rank in range(tp_size)]
        return cls(
            tp_rank=tp_rank,
            tp_size=tp_size,
            query_heads=query_heads,
            kv_heads=kv_heads,
            intermediate=_part(config.intermediate_size, tp_rank, tp_size, "intermediate_size"),
            vocab=vocab[tp_rank],
            vocab_sizes=tuple(width(rows) for rows in vocab),
        )

    @property
    def num_query_heads(self) -> int:
        return width(self.query_heads)

    @property
    def num_kv_heads(self) -> int:
        return width(self.kv_heads)


def width(part: slice) -> int:
    size: int = part.stop - part.start
    return size


def _heads(config: ModelConfig, rank: int, size: int) -> tuple[slice, slice]:
    """(query heads, KV heads) of this rank."""
    group = config.num_heads // config.num_kv_heads
    if size <= config.num_kv_heads:
        kv = slice(-(-config.num_kv_heads * rank // size), -(-config.num_kv_heads * (rank + 1) // size))
        return slice(kv.start * group, kv.stop * group), kv
    copies, rest = divmod(size, config.num_kv_heads)
    if rest or group % copies:
        raise ConfigError(
            f"tp is {size}, but {config.num_heads} query heads over {config.num_kv_heads} KV heads cannot be "
            f"split so: tp may be up to {config.num_kv_heads}, or that times a divisor of {group}"
        )
    part = group // copies
    return slice(rank * part, (rank + 1) * part), slice(rank // copies, rank // copies + 1)


def _part(total: int, rank: int, size: int, name: str) -> slice:
    """Contiguous, nearly even, and aligned where there is enough to align."""
    if total < size:
        raise ConfigError(f"tp is {size}, but {name} is only {total}")
    unit = ALIGNMENT if total >= ALIGNMENT * size else 1
    units = -(-total // unit)
    start, stop = (min(total, unit * -(-units * at // size)) for at in (rank, rank + 1))
    return slice(start, stop)
