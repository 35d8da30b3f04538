"""OpenAI's Responses and Anthropic's Messages, by the SDKs and the agents that their users have."""

from __future__ import annotations

import json

from acceptance.clients.programs import PYTHON, run
from tests.e2e.conftest import Server

CITIES = ("Paris", "Rome")


def test_responses(server: Server) -> None:
    out = run(PYTHON, "responses_client.py", server.url)
    found = json.loads(out)
    sdk, agents = found["sdk"], found["agents"]
    assert "Paris" in sdk["whole"] == sdk["streamed"] == sdk["helper"][1]
    assert sdk["helper"][0] == "response.completed" or sdk["helper"][0] == "response.incomplete"
    assert sdk["parsed"]["name"] in CITIES and sdk["usage"] > 0
    assert sdk["call"][0] == "get_weather" and sdk["call"][1]["city"] in CITIES
    assert sdk["retrieved"] and sdk["input"] == ["function_call_output"]
    assert (sdk["deleted"], sdk["cancelled"], sdk["refused"]) == ("response_not_found", "cancelled", "tools[0].type")
    said = [f"It is sunny in {city}." for city in agents["called"]]
    assert [agents["alone"], agents["handed"][1], agents["streamed"][1]] == said
    assert agents["handed"][0] == agents["streamed"][0] == "Weather"
    server.wait_until_free()


def test_messages(server: Server) -> None:
    out = run(PYTHON, "anthropic_client.py", server.url)
    found = json.loads(out)
    assert "Paris" in found["whole"] and found["whole"] == found["streamed"]
    assert found["counted"] and found["usage"] and found["stop_reason"] in ("end_turn", "max_tokens")
    assert found["stopped"] == ["stop_sequence", "aris"]
    for reason, name, given, streamed in found["calls"]:
        assert (reason, name) == ("tool_use", "get_weather") and given == streamed and given["city"] in CITIES
    assert found["after"] == "assistant" and found["refused"] == ["invalid_request_error", "not_found_error"]
    server.wait_until_free()
