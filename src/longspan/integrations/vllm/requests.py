"""What a request of vLLM asks of the policy."""

from __future__ import annotations

from collections.abc import Mapping

from longspan.service_level import ServiceLevel

_MS = 1e-3
_LEAST_MS, _MOST_MS = 0.001, 1e9
"""As with `longspan serve`: sums and products of what lies beyond are no numbers any more."""


def service_level(extra_args: object, priority: int) -> ServiceLevel:
    """Return the service level of a request.

    extra_args: of its sampling parameters, which `vllm_xargs` of an API request are; ttft_slo_ms and tpot_slo_ms count.
    What is no number of milliseconds from 0.001 to 1e9 is not heard: vLLM cannot refuse a request so late. priority: as
    vLLM has it, the lower goes first.
    """
    given = extra_args if isinstance(extra_args, Mapping) else {}
    ttft_s, tpot_s = (_seconds(given.get(name)) for name in ("ttft_slo_ms", "tpot_slo_ms"))
    return ServiceLevel(ttft_s, tpot_s, -priority)


def _seconds(given: object) -> float | None:
    if not isinstance(given, str | int | float) or isinstance(given, bool):
        return None
    try:
        milliseconds = float(given)
    except (ValueError, OverflowError):
        return None
    return milliseconds * _MS if _LEAST_MS <= milliseconds <= _MOST_MS else None
