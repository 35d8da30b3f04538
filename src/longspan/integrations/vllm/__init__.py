"""The default policy as a scheduler class of vLLM (docs/vllm.md).

    vllm serve MODEL --scheduler-cls longspan.integrations.vllm.LongspanScheduler

vLLM is imported only when one of these classes is asked for.
"""

from __future__ import annotations

from typing import Any

__all__ = ["AsyncLongspanScheduler", "LongspanScheduler"]


def __getattr__(name: str) -> Any:
    """Raises ImportError: vLLM is not installed here, or is no version that this was tried with."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from longspan.integrations.vllm.versions import check_vllm

    check_vllm()
    from longspan.integrations.vllm import scheduler

    return getattr(scheduler, name)
