"""Architecture name -> model class. A model's file is imported, and torch with it, only when it is to run."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from longspan.errors import UnsupportedModelError

if TYPE_CHECKING:
    from longspan.models.llama import LlamaModel

MODELS = {
    "LlamaForCausalLM": "longspan.models.llama:LlamaModel",
    "MistralForCausalLM": "longspan.models.llama:LlamaModel",
    "Qwen2ForCausalLM": "longspan.models.llama:LlamaModel",
    "Qwen3ForCausalLM": "longspan.models.llama:LlamaModel",
}


def model_class(architecture: str) -> type[LlamaModel]:
    if architecture not in MODELS:
        raise UnsupportedModelError(f"{architecture} is not implemented; these run: {', '.join(MODELS)}")
    module, _, name = MODELS[architecture].partition(":")
    found: type[LlamaModel] = getattr(import_module(module), name)
    return found
