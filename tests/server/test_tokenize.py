"""What the tokenizer makes of texts, conversations and token ids."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tests.server.fake_engine import MODEL
from tests.server.live_server import LiveServer

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f"}}


def test_a_text_and_back(http: httpx2.Client, server: LiveServer) -> None:
    answer = http.post("/tokenize", json={"model": MODEL, "prompt": "abä"}).json()
    assert answer == {"count": 4, "max_model_len": 512, "tokens": [97, 98, 195, 164], "token_strs": None}
    assert http.post("/detokenize", json={"tokens": answer["tokens"]}).json() == {"prompt": "abä"}
    assert http.post("/tokenize", json={"prompt": ""}).json()["tokens"] == []
    assert http.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}
    assert not server.engine.prompts  # nothing ran


def test_names_of_tokens(http: httpx2.Client) -> None:
    assert http.post("/tokenize", json={"prompt": "ab", "return_token_strs": True}).json()["token_strs"] == ["a", "b"]


def test_a_conversation(http: httpx2.Client) -> None:
    answer = http.post("/tokenize", json={"messages": [USER], "tools": [TOOL], "add_generation_prompt": False}).json()
    text = bytes(answer["tokens"]).decode()
    assert text.endswith("<user>hi") and "'name': 'f'" in text and "<add_generation_prompt=False>" in text


def test_what_it_is(http: httpx2.Client) -> None:
    assert http.get("/tokenizer_info").json() == {
        "tokenizer_class": "Fake", "chat_template": "{{ messages }}", "bos_token": None, "eos_token": "<eos>",
        "pad_token": None, "unk_token": None,
    }  # fmt: skip


def test_a_long_text(http: httpx2.Client) -> None:
    assert http.post("/tokenize", json={"prompt": "a" * 512}).json()["count"] == 512


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [USER]}, "prompt"),
        ("/tokenize", {"prompt": [1, 2]}, "prompt"),
        ("/tokenize", {"prompt": ["a", "b"]}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"prompt": "a" * 10_000}, "prompt"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [257]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": {}}, "tokens"),
        ("/detokenize", {"tokens": [1] * 10_000}, "tokens"),
    ],
)
def test_what_is_refused(http: httpx2.Client, path: str, body: dict[str, Any], param: str) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text
    assert http.post(path, json=body | {"model": "nobody"}).status_code in (400, 404)
