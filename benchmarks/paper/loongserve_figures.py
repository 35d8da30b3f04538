"""What LoongServe's figures 10 to 13 say (SOSP'24), and what its scripts set; github.com/LoongServe/LoongServe.

Absolute rates are printed in the notebooks beside the scripts (test/longserve), settings are those of its
5-start-api-server.py; figures 11 and 13 are from the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

SLOTS = {2: 210_000, 4: 500_000, 8: 900_000}
"""KV slots of an instance, by its devices. vLLM and DistServe take a share of the memory instead, for about as many."""
BATCH_TOKENS = {"static_tp": 600_000, "vllm": 600_000, "splitfuse": 600_000, "distserve": 550_000}
ELSE_BATCH_TOKENS = 500_000
"""Prefilled at once, by one server."""
RUNNING = {"ShareGPT": 1024, "L-Eval": 256, "LV-Eval": 256, "Mixed": 1024}
SYSTEMS_RUNNING = {"static_tp": 1024, "vllm": 1024, "distserve": 128}
ELSE_RUNNING = 1024
"""Requests at once, at most: a system's own limit, or the dataset's."""
REQUESTS_PER_MASTER = 128
CHUNKS = {"ShareGPT": 256, "L-Eval": 2048, "LV-Eval": 16_384, "Mixed": 2048}
"""Tokens in an iteration of LightLLM's SplitFuse."""
SLO_SCALE = 25.0
"""Of the latencies without load."""
TTFT_FLOOR_S, TPOT_S, ATTAINMENT = 15.0, 0.05, 0.9
"""Of goodput, figures 12 and 13."""
SCALE_UP_RATE = 25.0
"""Requests a second at which figure 13 counts scale-ups."""

SLO_S = {
    "ShareGPT": {"per_token": 0.092, "input": 0.020},
    "L-Eval": {"per_token": 0.0035, "input": 0.0018},
    "LV-Eval": {"per_token": 0.0025, "input": 0.0025},
    "Mixed": {"per_token": 0.070, "input": 0.090},
    "Mixed, 16 GPUs": {"per_token": 0.065, "input": 0.064},
}
"""The scripts' limits on means, seconds a token."""

RATES = {
    "ShareGPT": {
        "loongserve": {"per_token": 29.470, "input": 24.866},
        "vllm": {"per_token": 6.351, "input": 6.224},
        "splitfuse": {"per_token": 23.128, "input": 22.073},
        "distserve": {"per_token": 10.366, "input": 10.060},
    },
    "L-Eval": {
        "loongserve": {"per_token": 2.416, "input": 2.249},
        "vllm": {"per_token": 1.144, "input": 1.203},
        "splitfuse": {"per_token": 1.231, "input": 1.226},
        "distserve": {"per_token": 0.415, "input": 0.629},
    },
    "LV-Eval": {
        "loongserve": {"per_token": 0.201, "input": 0.201},
        "vllm": {"per_token": 0.090, "input": 0.091},
        "splitfuse": {"per_token": 0.082, "input": 0.083},
    },
    "Mixed": {
        "loongserve": {"per_token": 0.553, "input": 0.516},
        "vllm": {"per_token": 0.208, "input": 0.215},
        "splitfuse": {"per_token": 0.144, "input": 0.153},
    },
    "Zipf 1.0": {
        "loongserve": {"goodput": 1.122}, "static_tp": {"goodput": 0.405}, "static_sp": {"goodput": 0.481},
        "replicated": {"goodput": 0.360},
    },
    "Zipf 1.2": {
        "loongserve": {"goodput": 2.925}, "static_tp": {"goodput": 1.355}, "static_sp": {"goodput": 1.478},
        "replicated": {"goodput": 1.289},
    },
    "Zipf 1.4": {
        "loongserve": {"goodput": 8.757}, "static_tp": {"goodput": 5.723}, "static_sp": {"goodput": 5.447},
        "replicated": {"goodput": 5.000},
    },
}  # fmt: skip
"""Requests a second. DistServe ran out of memory on LV-Eval and Mixed."""

RATIOS = {
    "Mixed, 16 GPUs": {
        "vllm": {"per_token": 1.86, "input": 1.72},
        "splitfuse": {"per_token": 3.37, "input": 3.11},
    },
    "ShareGPT, goodput": {"loongserve_no_scale_up": {"goodput": 2.87}},
}
"""LoongServe's rate over another's, where only that is published."""
SCALE_UPS_IN_10_S = 7.12

STANDS_FOR = {"static_tp": "vllm"}
"""The paper ran vLLM 0.3.0, which prefills whole prompts before it decodes: `static_tp`. `vllm` is that of today."""


def cells(rates: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> Iterator[dict[str, Any]]:
    """LoongServe's rate over every other system's: here, and in the paper.

    rates: requests a second, by case, policy and metric; None: not found.
    """
    for case, systems in rates.items():
        for policy, metrics in systems.items():
            if policy != "loongserve":
                for metric, rate in metrics.items():
                    loongserve = systems["loongserve"][metric]
                    yield {
                        "case": case, "over": policy, "metric": metric, "paper": published_ratio(case, policy, metric),
                        "ours": loongserve / rate if loongserve and rate else None,
                    }  # fmt: skip


def published_ratio(case: str, policy: str, metric: str) -> float | None:
    name = policy if policy in RATES.get(case, {}) else STANDS_FOR.get(policy, policy)
    if name in RATES.get(case, {}):
        return RATES[case]["loongserve"][metric] / RATES[case][name][metric]
    ratio = RATIOS.get(case, {}).get(name)
    return None if ratio is None else ratio[metric]
