"""Whether traces can be sent as asked: known before a model is loaded."""

from __future__ import annotations

from importlib.util import find_spec
from urllib.parse import urlsplit

from longspan.entrypoints.server_config import ServerConfig
from longspan.errors import ConfigError

_NEEDED = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")


def check_tracing(config: ServerConfig) -> None:
    """Raises ConfigError: the endpoint is no URL, or OpenTelemetry is not installed."""
    endpoint = config.otlp_traces_endpoint
    if endpoint is None:
        return
    try:
        parts = urlsplit(endpoint)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise ConfigError(
            f"otlp_traces_endpoint is {endpoint!r}, but must be a URL that takes OTLP over HTTP, such as "
            "http://localhost:4318/v1/traces"
        )
    if not all(map(_is_there, _NEEDED)):
        raise ConfigError(
            "otlp_traces_endpoint needs OpenTelemetry; install it with: "
            "pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http"
        )


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
