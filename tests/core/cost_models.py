"""Cost models for tests: a plausible one, and arbitrary ones."""

from __future__ import annotations

from hypothesis import strategies as st

from longspan.core.costs.cost_model import DecodeCoefficients, FittedCostModel, PrefillCoefficients


def scaling_model(
    num_instances: int,
    *,
    fixed: float = 0.035,
    fixed_step: float = 0.002,
    per_token: float = 4e-5,
    per_pair: float = 7.8e-10,
    decode_fixed: float = 0.012,
    decode_step: float = 0.001,
    per_request: float = 1e-4,
    migration_per_token: float = 1.3e-6,
) -> FittedCostModel:
    """Work is divided by the number of instances, the fixed cost grows with it.

    The default is LWM-1M-Text on TP2 instances of A800: on four of them what LoongServe's figure 3 shows.
    """
    numbers = range(1, num_instances + 1)
    return FittedCostModel(
        prefill_coefficients=tuple(
            PrefillCoefficients(
                num_instances=n, fixed=fixed + fixed_step * n, per_token=per_token / n, per_pair=per_pair / n
            )
            for n in numbers
        ),
        decode_coefficients=tuple(
            DecodeCoefficients(
                num_instances=n,
                num_masters=masters,
                fixed=decode_fixed + decode_step * n,
                per_request=per_request / masters,
                per_context_token=1e-8 / n,
            )
            for n in numbers
            for masters in sorted({1, n})
        ),
        migration_fixed=1e-4,
        migration_per_token=migration_per_token,
    )


@st.composite
def cost_models(draw: st.DrawFn, num_instances: int = 5) -> FittedCostModel:
    """From free to dear in each respect, so that every decision of a policy that predicts comes up."""
    some = st.sampled_from([0.0, 1e-6, 1e-4, 1e-2, 1.0])
    return scaling_model(
        num_instances,
        fixed=draw(some),
        fixed_step=draw(some),
        per_token=draw(some),
        per_pair=draw(some),
        decode_fixed=draw(some),
        decode_step=draw(some),
        per_request=draw(some),
        migration_per_token=draw(some),
    )
