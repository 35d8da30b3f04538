"""What every endpoint needs."""

from __future__ import annotations

from dataclasses import dataclass

from longspan.engine.protocol import EngineClient
from longspan.entrypoints.server_config import ServerConfig
from longspan.metrics.prometheus import ServerMetrics


@dataclass(frozen=True, slots=True)
class Context:
    """One server's engine, metrics and settings. `started` is Unix time, seconds."""

    engine: EngineClient
    metrics: ServerMetrics
    config: ServerConfig
    started: int
