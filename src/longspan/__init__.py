"""Longspan serves long-context language models; every request gets the accelerators its present phase needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from longspan.sampling_params import SamplingParams
from longspan.structured_outputs import StructuredOutputs

if TYPE_CHECKING:
    from longspan.engine.llm import LLM

__all__ = ["LLM", "SamplingParams", "StructuredOutputs", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load `LLM` only where it is used: it brings tokenizers and the like with it."""
    if name == "LLM":
        from longspan.engine.llm import LLM

        return LLM
    raise AttributeError(f"module 'longspan' has no attribute {name!r}")
