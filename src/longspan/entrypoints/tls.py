"""HTTPS: certificate and key, looked at before a model is loaded."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from longspan.entrypoints.server_config import ServerConfig
from longspan.errors import ConfigError


def tls_settings(config: ServerConfig) -> dict[str, Any]:
    """Return uvicorn's settings for TLS; none without a certificate. With `ssl_ca_certs` clients must show one.

    Raises:
        ConfigError: a file cannot be read or used.
    """
    if config.ssl_certfile is None:
        return {}
    for name in ("ssl_certfile", "ssl_keyfile", "ssl_ca_certs"):
        path = getattr(config, name)
        if path is not None:
            _check_readable(name, path)
    _check_usable(config)
    return {
        "ssl_certfile": config.ssl_certfile,
        "ssl_keyfile": config.ssl_keyfile,
        "ssl_keyfile_password": config.ssl_keyfile_password,
        "ssl_ca_certs": None if config.ssl_ca_certs is None else str(config.ssl_ca_certs),
        "ssl_cert_reqs": ssl.CERT_NONE if config.ssl_ca_certs is None else ssl.CERT_REQUIRED,
    }


def _check_readable(name: str, path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise ConfigError(f"{name} {path} cannot be read: {error.strerror}") from error


def _check_usable(config: ServerConfig) -> None:
    assert config.ssl_certfile is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    asked = False

    def password() -> str:  # without this OpenSSL asks at the terminal
        nonlocal asked
        asked = True
        return config.ssl_keyfile_password or ""

    try:
        context.load_cert_chain(config.ssl_certfile, config.ssl_keyfile, password)
    except (ssl.SSLError, ValueError) as error:
        key = config.ssl_keyfile or config.ssl_certfile
        if asked:
            hint = "is wrong" if config.ssl_keyfile_password else "is missing"
            raise ConfigError(f"the key in {key} is encrypted, and ssl_keyfile_password {hint}") from error
        raise ConfigError(
            f"ssl_certfile {config.ssl_certfile} and the key in {key} are not a PEM certificate and its key: {error}"
        ) from error
    try:
        if config.ssl_ca_certs is not None:
            context.load_verify_locations(config.ssl_ca_certs)
    except ssl.SSLError as error:
        raise ConfigError(f"ssl_ca_certs {config.ssl_ca_certs} holds no PEM certificates: {error}") from error
