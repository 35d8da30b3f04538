"""What clients say of prefixes, and what they are told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from typing import Any

import httpx2
import pytest

from longspan.config import EngineConfig
from longspan.outputs import EngineStats, RequestOutput
from longspan.sampling_params import SamplingParams
from tests.server.fake_engine import FakeEngine
from tests.server.live_server import LiveServer, live_server

COMPLETION = {"prompt": "a prompt", "max_tokens": 3}
CHAT = {"messages": [{"role": "user", "content": "a prompt"}], "max_tokens": 3}
BODIES: dict[str, dict[str, Any]] = {"/v1/completions": COMPLETION, "/v1/chat/completions": CHAT}


class Remembering(FakeEngine):
    """Finds nothing for the first request, and five tokens for each after it."""

    async def generate(
        self, prompt_token_ids: Sequence[int], params: SamplingParams, request_id: str
    ) -> AsyncIterator[RequestOutput]:
        found = 5 if self.prompts else 0
        async for output in super().generate(prompt_token_ids, params, request_id):
            yield replace(output, num_cached_tokens=found)

    def stats(self) -> EngineStats:
        return replace(super().stats(), num_looked_up=700, num_found=500, kv_tokens_cached=60)


@pytest.fixture(scope="module")
def remembering() -> Iterator[LiveServer]:
    with live_server(Remembering(EngineConfig(model="fake/model", max_waiting=64))) as server:
        yield server


def post(server: LiveServer, path: str, body: dict[str, Any]) -> httpx2.Response:
    with httpx2.Client(base_url=server.url, timeout=30, trust_env=False) as http:
        return http.post(path, json=body)


@pytest.mark.parametrize("path", BODIES)
def test_usage_tells_what_was_not_computed(remembering: LiveServer, path: str) -> None:
    remembering.engine.reset()
    for cached in (0, 5, 5):
        usage = post(remembering, path, BODIES[path]).json()["usage"]
        assert usage["prompt_tokens_details"] == {"cached_tokens": cached}
    streamed = post(remembering, path, BODIES[path] | {"stream": True, "stream_options": {"include_usage": True}})
    assert '"prompt_tokens_details":{"cached_tokens":5}' in streamed.text.split("data: ")[-2]


def test_each_prompt_counts_once(remembering: LiveServer) -> None:
    """As its first choice found it: what the others found is what that has computed."""
    remembering.engine.reset()
    answer = post(remembering, "/v1/completions", COMPLETION | {"prompt": ["a prompt", "another"], "n": 3})
    usage = answer.json()["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 5}


def test_without_a_cache_there_is_nothing_to_tell() -> None:
    with live_server(FakeEngine(EngineConfig(model="fake/model", prefix_cache=False))) as server:
        assert "prompt_tokens_details" not in post(server, "/v1/completions", COMPLETION).json()["usage"]


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("said, meant", [
    ({}, (True, None)), ({"cache": False}, (False, None)), ({"cache": None}, (True, None)),
    ({"cache_salt": "s"}, (True, "s")), ({"cache": True, "cache_salt": "t"}, (True, "t")),
])  # fmt: skip
def test_what_a_request_says_reaches_the_engine(
    server: LiveServer, path: str, said: dict[str, Any], meant: tuple[bool, str | None]
) -> None:
    assert post(server, path, BODIES[path] | said).status_code == 200
    (params,) = server.engine.params.values()
    assert (params.cache, params.cache_salt) == meant


@pytest.mark.parametrize("said", [{"cache": 1}, {"cache_salt": ""}, {"cache_salt": 7}, {"cache_salt": "x" * 5000}])
def test_nonsense_is_refused_by_name(server: LiveServer, said: dict[str, Any]) -> None:
    answer = post(server, "/v1/completions", COMPLETION | said)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == next(iter(said))


def test_metrics(remembering: LiveServer) -> None:
    text = httpx2.get(f"{remembering.url}/metrics", timeout=30, trust_env=False).text
    for name in ("prefix_cache_queries", "prefix_cache_hits", "prompt_tokens_cached"):
        assert f"vllm:{name}_total{{" in text
    assert "longspan:kv_tokens_cached{" in text
    assert "} 700.0" in text and "} 500.0" in text and "} 60.0" in text
