"""What a model is, read from a Hugging Face folder or from a GGUF file. Imports no torch."""

from __future__ import annotations

import logging
from pathlib import Path

from longspan.errors import ModelError
from longspan.layers.rope_config import RopeConfig
from longspan.models import gguf_config, hf_config
from longspan.models.architecture import FAMILIES, ModelConfig

__all__ = ["FAMILIES", "ModelConfig", "RopeConfig", "load_model_config"]

logger = logging.getLogger(__name__)


def load_model_config(path: Path | str, rope_scaling: str | None = None) -> ModelConfig:
    """Load `path`, a folder in Hugging Face layout, or a .gguf file.

    rope_scaling: a JSON object in place of the model's own RoPE scaling. Raises ModelError, UnsupportedModelError;
    ConfigError where the scaling cannot be.
    """
    path = Path(path)
    if path.is_dir():
        config = hf_config.read(path, rope_scaling)
    elif path.is_file():
        config = gguf_config.read(path, rope_scaling)
    else:
        raise ModelError(f"{path} does not exist; pass a folder in Hugging Face layout, or a .gguf file")
    if config.max_model_len < config.max_position_embeddings:
        logger.info("%s: context is limited by %s", path.name, config.max_model_len_reason)
    return config
