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


def load_model_config(path: Path | str) -> ModelConfig:
    """Load `path`, a folder in Hugging Face layout, or a .gguf file. Raises ModelError, UnsupportedModelError."""
    path = Path(path)
    if path.is_dir():
        config = hf_config.read(path)
    elif path.is_file():
        config = gguf_config.read(path)
    else:
        raise ModelError(f"{path} does not exist; pass a folder in Hugging Face layout, or a .gguf file")
    if config.max_model_len < config.max_position_embeddings:
        logger.info("%s: context is limited by %s", path.name, config.max_model_len_reason)
    return config
