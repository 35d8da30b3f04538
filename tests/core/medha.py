"""Small deployments of the policy `medha`, and a driver for them."""

from __future__ import annotations

from typing import Any

from longspan.core.costs.analytic import Hardware, ModelShape
from longspan.core.costs.cost_model import FittedCostModel
from longspan.service_level import ServiceLevel

from .cost_models import scaling_model
from .driver import Driver
from .settings import configured

LLAMA_8B = ModelShape(
    num_layers=32, hidden_size=4096, intermediate_size=14336, num_heads=32, num_kv_heads=8, head_dim=128,
    vocab_size=128256, weight_bytes=2.0, kv_bytes=2.0,
)  # fmt: skip
H200 = Hardware(flops=989e12, bandwidth=4.8e12, link_bandwidth=4e11, overhead_s=0.0)
LAZY = ServiceLevel(ttft_s=1e6)


def model(**changes: float) -> FittedCostModel:
    """A token costs 1 ms, whatever its context; nothing is fixed."""
    return scaling_model(4, **({"fixed": 0.0, "fixed_step": 0.0, "per_token": 1e-3, "per_pair": 0.0,
                               "decode_fixed": 0.0, "decode_step": 0.0, "per_request": 1e-3} | changes))  # fmt: skip


def driver(cost_model: FittedCostModel | None = None, **changes: Any) -> Driver:
    """One instance of 1000 slots; iterations of 50 ms, and a bit for rounding: 50 tokens of the plain model."""
    given_: dict[str, Any] = {
        "num_instances": 1, "kv_tokens": 1000, "policy": "medha", "decode_headroom": 4, "lookahead": False,
        "tpot_slo_s": 0.0505,
    }  # fmt: skip
    return Driver(configured(**(given_ | changes)), cost_model=cost_model or model())
