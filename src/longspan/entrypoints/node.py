"""A machine that has workers of an engine which another machine serves: `longspan serve` with a --node-rank above 0."""

from __future__ import annotations

import logging

from longspan.config import EngineConfig
from longspan.engine.node_facts import node_facts
from longspan.engine.phase_display import shown_phases
from longspan.entrypoints.logs import configure_logging
from longspan.entrypoints.server_config import ServerConfig
from longspan.executor.nodes.access import fleet_key, master_address
from longspan.executor.nodes.agent import AgentSettings, NodeAgent
from longspan.models.catalog import resolve_model

logger = logging.getLogger("longspan.node")


def serve_node(engine_config: EngineConfig, config: ServerConfig) -> int:
    """Run workers for the engine at `master` until it ends, or a signal comes; see `NodeAgent.run`.

    Raises ConfigError, ModelError.
    """
    host, port = master_address(engine_config)
    return run_agent(
        engine_config, config, host=host, port=port, key=fleet_key(engine_config), node=engine_config.node_rank
    )


def run_agent(
    engine_config: EngineConfig, config: ServerConfig, *, host: str, port: int, key: bytes, node: int,
    own_host: int | None = None, threads: int | None = None,
) -> int:  # fmt: skip
    """Run workers for the engine that listens there; see `AgentSettings` and `NodeAgent.run`.

    Raises ConfigError, ModelError.
    """
    configure_logging(config)
    with shown_phases(logger.info) as on_phase:
        model = resolve_model(engine_config.model, on_phase, engine_config.revision)
    settings = AgentSettings(
        host=host, port=port, key=key, node=node, facts=node_facts(engine_config, model.path),
        model_path=str(model.path), leave_s=config.drain_timeout_s, own_host=own_host, threads=threads,
    )  # fmt: skip
    return NodeAgent(settings).run()
