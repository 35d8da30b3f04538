"""Programs of others, as their users have them, against the real server and the real model: npm's, curl, LangChain,
instructor."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path

import pytest

from acceptance.clients.programs import HERE, NODE, PYTHON, run
from tests.e2e.conftest import Server

FOLDER = tempfile.TemporaryDirectory()
TRIES = re.findall(r"^  async (\w+)\(", (HERE / "client.mjs").read_text(), re.MULTILINE)
ASK = {"model": "smollm2-135m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8, "temperature": 0}


@pytest.mark.parametrize("attempt", TRIES)
def test_openai_of_npm(server: Server, attempt: str) -> None:
    run(NODE, "client.mjs", server.url, attempt)
    server.wait_until_free()


def test_curl_streams(server: Server) -> None:
    out = curl(server, "--no-buffer", body={**ASK, "stream": True})
    pieces = [line.removeprefix("data: ") for line in out.splitlines() if line]
    assert pieces[-1] == "[DONE]"
    assert all(json.loads(piece)["object"] == "chat.completion.chunk" for piece in pieces[:-1])


def test_curl_asks_before_it_sends_much(server: Server) -> None:
    """A body beyond a megabyte: `Expect: 100-continue`. What is not the server's to answer is refused as JSON."""
    out = curl(server, "--header", "Expect: 100-continue", "--write-out", "\n%{http_code}",
               body={**ASK, "messages": [{"role": "user", "content": "a b " * 400_000}]})  # fmt: skip
    text, _, status = out.rpartition("\n")
    assert status == "400" and json.loads(text)["error"]["code"] == "context_length_exceeded"


def test_curl_over_one_connection(server: Server) -> None:
    """Three requests; curl says how many connections it made."""
    urls = [f"{server.url}/v1/models"] * 3
    assert run("curl", "--silent", "--write-out", "%{num_connects} ", *urls).count("1 ") == 1


def test_curl_that_leaves(server: Server) -> None:
    endless = {**ASK, "max_tokens": 4000, "ignore_eos": True, "stream": True}
    started = subprocess.Popen(curl_command(server, "--no-buffer", body=endless), stdout=subprocess.PIPE)
    assert started.stdout is not None and started.stdout.readline()
    started.kill()
    started.communicate()
    server.wait_until_free()


def test_langchain(server: Server) -> None:
    """Whole answers, streams, and usage, in an environment of its own."""
    out = run(PYTHON, "langchain_client.py", server.url)
    whole, streamed, tokens = json.loads(out)
    assert whole == streamed and "Paris" in whole
    assert tokens > 0


def test_structured_output_and_tools(server: Server) -> None:
    """LangChain, instructor and OpenAI's SDK: each checks the shape of what it gets itself."""
    found = json.loads(run(PYTHON, "structured_clients.py", server.url))
    by_schema, by_call, names, streamed, free = found["langchain"]
    assert {*by_schema} == {*by_call} == {"name", "size"} and free
    assert {*names} == {"GetWeather"} and all({*call} == {"city"} for call in streamed)
    assert all(city["size"] in ("small", "large") for city in found["instructor"])
    parsed, calls = found["openai"]
    assert parsed["size"] in ("small", "large") and calls and all({*call} == {"city"} for call in calls)


def curl_command(server: Server, *options: str, body: object) -> list[str]:
    return ["curl", "--silent", "--show-error", *options, f"{server.url}/v1/chat/completions",
            "--header", "Content-Type: application/json", "--data-binary", f"@{_file(body)}"]  # fmt: skip


def curl(server: Server, *options: str, body: object) -> str:
    return run(*curl_command(server, *options, body=body))


def _file(body: object) -> Path:
    path = Path(FOLDER.name, "body.json")
    path.write_text(json.dumps(body))
    return path

