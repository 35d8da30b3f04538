"""What simulated requests give as their `max_tokens`; where they really end is never told to the scheduler."""

from __future__ import annotations

from typing import Literal

OutputLimit = Literal["longest", "rounded", "exact"]
"""longest: the longest output of the workload, alike for all, which tells nothing about any of them.
rounded: its own output, rounded up to a power of two. exact: its own output, as in LoongServe's experiments.
"""


def max_tokens(limit: OutputLimit, num_output_tokens: int, longest: int) -> int:
    match limit:
        case "longest":
            return longest
        case "rounded":
            return 1 << (num_output_tokens - 1).bit_length()
        case "exact":
            return num_output_tokens
