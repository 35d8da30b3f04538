"""One number says how long a request may be: the default of max_tokens, /v1/models, the greeting, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import pytest

from longspan.config import EngineConfig
from longspan.engine.assembly import start_engine
from longspan.entrypoints.openai.app import create_app
from longspan.entrypoints.welcome import print_welcome
from tests.models.tiny import write_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = write_tiny_model(tmp_path_factory.mktemp("served"), max_position_embeddings=512)
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    (made / "chat_template.jinja").write_text(template)
    return made


@pytest.mark.parametrize(
    ("policy", "kv_tokens", "limit"),
    [("vllm", 96, 96), ("splitfuse", 96, 96), ("elastic_fcfs", 96, 192), ("vllm", 600, 512)],
)
async def test_a_chat_without_max_tokens_gets_what_the_policy_can_serve(
    folder: Path, capsys: pytest.CaptureFixture[str], policy: str, kv_tokens: int, limit: int
) -> None:
    config = EngineConfig(
        model=str(folder), policy=policy, kv_tokens=kv_tokens, executor="inproc", dtype="float32",
        threads_per_device=1,
    )  # fmt: skip
    engine = await start_engine(config)
    try:
        transport = httpx2.ASGITransport(create_app(engine))
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            asked: dict[str, Any] = {"messages": [{"role": "user", "content": "One two three"}], "ignore_eos": True}
            answer = await http.post("/v1/chat/completions", json=asked)
            too_many = await http.post("/v1/chat/completions", json=asked | {"max_completion_tokens": limit})
            models = await http.get("/v1/models")
        assert answer.status_code == 200 and answer.json()["usage"]["total_tokens"] == limit
        assert models.json()["data"][0]["max_model_len"] == limit
        error = too_many.json()["error"]
        assert too_many.status_code == 400 and f"{limit} tokens" in error["message"]
        assert (error["param"], error["code"]) == ("max_completion_tokens", "context_length_exceeded")
        print_welcome(engine, "http://127.0.0.1:1")
        assert f"requests of up to {limit} tokens" in capsys.readouterr().out
    finally:
        await engine.close()
