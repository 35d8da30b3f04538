"""What there is to say against a plan: that a few requests judge it, or more load than anybody can bear for long."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from longspan.workload.traces import TraceRequest

_MOST_LATE = 10  # requests of a class that may be late, at least, for their share to be more than chance


def doubts(
    requests: Sequence[TraceRequest], attainment: float, long_threshold: int, load: float | None
) -> Iterator[str]:
    """Yield a sentence for each, with what to do.

    attainment: the share that shall be in time of short and of long requests each. load: offered, at the answer; 1 is
    all that the devices can compute.
    """
    num_long = sum(request.num_prompt_tokens >= long_threshold for request in requests)
    needed = math.ceil(round(_MOST_LATE / (1.0 - attainment), 6)) if attainment < 1.0 else 0
    few = [
        f"{count} {name}" for name, count in (("short", len(requests) - num_long), ("long", num_long))
        if 0 < count < needed
    ]  # fmt: skip
    if few:
        yield (
            f"only {' and '.join(few)} requests judge it, so that one that is late by chance shifts the answer: "
            f"{attainment:.0%} asks for {needed} of each; give more with --num-requests"
        )
    if load is not None and load > 1.0:
        yield (
            f"the load is {load:.2f}, more than the devices can compute: these {len(requests)} requests end before the "
            "queue has grown too long, but it grows for as long as they come so fast; judge by more of them, with "
            "--num-requests, or plan for a rate below that"
        )
