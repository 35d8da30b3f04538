"""Whose certificates our own clients believe, and what they say of one that they do not."""

from __future__ import annotations

import os
import ssl

VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
"""Of the environment, as other clients read them: certificates of the authorities to believe, PEM."""


def own_authorities() -> ssl.SSLContext | None:
    """Return a context for the authorities that the environment names; None: it names none.

    Raises OSError: they cannot be read.
    """
    file, folder = (os.environ.get(name) or None for name in VARIABLES)
    return ssl.create_default_context(cafile=file, capath=folder) if file or folder else None


def no_connection(url: str, error: Exception) -> str:
    """Tell why there is no connection, and where the server is there but not believed, what to do about it."""
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return f"the certificate of {url} is not trusted ({error}); name a file with its authority in {VARIABLES[0]}"
    return f"no server answers at {url} ({error})"
