"""What the tests of several machines compare with."""

from __future__ import annotations

import pytest

from acceptance.cluster.fleet import OPTIONS, Fleet
from acceptance.cluster.namespaces import two_machines
from acceptance.cluster.network import KEY
from tests.e2e.conftest import serve


@pytest.fixture(scope="session")
def expected() -> list[str]:
    """What one machine with both instances answers."""
    with two_machines() as (host, client), serve("--host", host.address, "--api-key", KEY, *OPTIONS,
                                                 on=host.command()) as server:  # fmt: skip
        return Fleet(host, client, server).ask_all()
