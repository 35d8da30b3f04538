"""What applications are built with: LiteLLM, LlamaIndex, Vercel's AI SDK. Each checks the shape of what it gets."""

from __future__ import annotations

import json

from acceptance.clients.programs import FRAMEWORKS, NODE, run
from tests.e2e.conftest import Server


def test_litellm(server: Server) -> None:
    """As OpenAI's server, and as vLLM's: whole answers, streams, structured output, tools and their results, errors."""
    for found in json.loads(run(FRAMEWORKS, "litellm_client.py", server.url)).values():
        assert found["whole"] == found["streamed"] and "Paris" in found["whole"]
        assert found["tokens"][0] == found["tokens"][1] > 0
        assert {*found["shaped"]} == {"name", "size"} and all({"city", "cut"} & {*call} for call in found["calls"])
        assert found["after a tool"] in ("stop", "length", "tool_calls") and found["refused"] == 400
    server.wait_until_free()


def test_llama_index(server: Server) -> None:
    """Both endpoints, whole and streamed; structured output by a tool and by its schema; a tool that must be called."""
    found = json.loads(run(FRAMEWORKS, "llama_index_client.py", server.url))
    assert found["whole"] == found["streamed"] and "Paris" in found["whole"]
    assert found["completion"] == found["streamed completion"] and "Paris" in found["completion"]
    assert {*found["by a tool"]} == {*found["by its schema"]} == {"name", "size"}
    assert found["called"] and all(name == "get_weather" and {*call} == {"city"} for name, call in found["called"])


def test_vercel_ai(server: Server) -> None:
    """generateText, streamText, generateObject, objects in streams, and tools that it calls and tells of."""
    found = json.loads(run(NODE, "vercel.mjs", server.url))
    assert "Paris" in found["whole"] and found["asked"]
    assert {*found["object"]} == {*found["output"]} == {*found["partial"]} == {"name", "size"}
