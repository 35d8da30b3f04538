"""A chat template of one's own, from a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from longspan.engine.tokenizer import Tokenizer
from longspan.errors import ConfigError
from longspan.models.catalog import ResolvedModel


def test_it_is_used_instead_of_the_models_own(model: ResolvedModel, tmp_path: Path) -> None:
    path = tmp_path / "template.jinja"
    told = "{% for tool in tools or [] %}<{{ tool.function.name }}>{% endfor %}"
    path.write_text(told + "{{ messages[0].content }}<tool_call>")
    tokenizer = Tokenizer.load(model, path)
    tool = {"type": "function", "function": {"name": "f"}}
    assert tokenizer.render_chat([{"role": "user", "content": "hi"}], tools=[tool]) == "<f>hi<tool_call>"
    assert tokenizer.chat_format.tells_tools and tokenizer.chat_format.family == "hermes"
    info = tokenizer.info()
    assert info["chat_template"] == path.read_text() and info["eos_token"] == "<|im_end|>"
    assert not Tokenizer.load(model).chat_format.tells_tools


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_one_that_cannot_be_read_is_told(model: ResolvedModel, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "template.jinja"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"chat_template .*template\.jinja cannot be read"):
        Tokenizer.load(model, path)
