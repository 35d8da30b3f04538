"""What has to be the same on all machines of an engine, for a request to get the same tokens wherever it runs."""

from __future__ import annotations

import hashlib
from pathlib import Path

from longspan.config import EngineConfig
from longspan.engine.fingerprint import add_model
from longspan.sib import package_versions

_SETTINGS = (
    "nnodes", "instances", "tp", "pp", "pp_layers", "dtype", "quantization", "device", "transport", "rope_scaling",
    "kv_tokens", "max_model_len",
)  # fmt: skip


def node_facts(config: EngineConfig, model: Path) -> dict[str, str]:
    """Return versions, what was set (before the start chooses what was not), and a digest of the model's files."""
    digest = hashlib.sha256()
    add_model(digest, model)
    versions = {f"the version of {name}": package_versions()[name] for name in ("longspan", "torch")}
    settings = {name: str(getattr(config, name)) for name in _SETTINGS}
    return {**versions, **settings, "the model's files": digest.hexdigest()[:16]}
