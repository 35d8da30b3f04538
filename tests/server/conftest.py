from __future__ import annotations

from collections.abc import Iterator

import httpx2
import openai
import pytest

from tests.server.live_server import LiveServer, live_server


@pytest.fixture(scope="module")
def module_server() -> Iterator[LiveServer]:
    with live_server() as server:
        yield server


@pytest.fixture
def server(module_server: LiveServer) -> LiveServer:
    module_server.engine.reset()
    return module_server


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=30) as client:
        yield client


@pytest.fixture
def http(server: LiveServer) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=30, trust_env=False) as http:
        yield http
