"""What a decode step asks of a GPU, counted on a CPU that pretends to be one (tests/gpu/pretend_gpu.py).

    python benchmarks/gpu/decode_counts.py

Of 32 layers, as Llama-3-8B has them, worked out from models of 1 and 2; operators are kernels at least.
tests/gpu/test_decode_counts.py holds these numbers: later ones may only be lower.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.common import save, say
from tests.gpu.decode_step import CASES, CONTEXT, LAYERS, case_name, decode_counts


def main() -> None:
    results = []
    for batch, instances, params in CASES:
        counts = decode_counts(batch, instances, params)
        totals = [of_instance.totals() for of_instance in counts]
        name = case_name(batch, instances, params)
        say(f"{name}: {totals}")
        by_name = [
            {kind: dict(getattr(of_instance, kind).most_common()) for kind in totals[0]} for of_instance in counts
        ]
        results.append({"case": name, "instances": totals, "by_name": by_name})
    save("gpu/decode_counts", {"layers": LAYERS, "context": CONTEXT, "steps": results})


if __name__ == "__main__":
    main()
