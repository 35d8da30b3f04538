"""What every endpoint needs."""

from __future__ import annotations

from dataclasses import dataclass

from longspan.engine.protocol import EngineClient
from longspan.entrypoints.openai.bounds import Bounds
from longspan.entrypoints.openai.decoding import BodyReader
from longspan.entrypoints.openai.pace import Pace
from longspan.entrypoints.openai.text_pool import TextPool
from longspan.entrypoints.openai.texts import Texts
from longspan.entrypoints.server_config import ServerConfig
from longspan.entrypoints.tracing.tracing import Tracing, TracingCollector
from longspan.metrics.prometheus import ENGINE, ServerMetrics

_WAITING_PROMPTS = 8  # texts of the greatest length may wait, or one body of the greatest size


@dataclass(frozen=True, slots=True)
class Context:
    """One server's engine, metrics, settings, and what it does with clients' texts. `started` is Unix time, seconds."""

    engine: EngineClient
    metrics: ServerMetrics
    config: ServerConfig
    started: int
    bounds: Bounds
    pool: TextPool
    reader: BodyReader
    texts: Texts
    pace: Pace
    tracing: Tracing | None = None

    @classmethod
    def of(cls, engine: EngineClient, metrics: ServerMetrics, config: ServerConfig, started: int) -> Context:
        bounds = Bounds.of(engine, config.max_body_bytes)
        pool = TextPool(max(config.max_body_bytes, _WAITING_PROMPTS * bounds.prompt_chars))
        texts = Texts(engine.tokenizer, bounds, pool)
        tracing = None
        if config.otlp_traces_endpoint is not None:
            tracing = Tracing(config.otlp_traces_endpoint, engine.model_name)
            metrics.registry.register(TracingCollector(tracing, (engine.model_name, ENGINE)))
            engine.on_ended(tracing.take)
        return cls(engine, metrics, config, started, bounds, pool, BodyReader(bounds), texts, Pace(), tracing)

    def close(self) -> None:
        """End the threads of the pool and of the traces, which are sent if that takes no longer than some seconds."""
        self.pool.close()
        if self.tracing is not None:
            self.tracing.close()
