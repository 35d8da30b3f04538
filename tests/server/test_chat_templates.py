"""Conversations in a model's own chat template, with the real tokenizer: what is handed over, and what may go wrong."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from longspan.engine.tokenizer import Tokenizer
from longspan.entrypoints.openai import texts
from tests.server.fake_engine import FakeEngine
from tests.server.live_server import LiveServer, live_server
from tests.server.test_server_errors import error_of

PLAIN = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
Ask = Callable[..., httpx2.Response]


def tokenizer(template: str) -> Tokenizer:
    """A token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({char: number for number, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template))


class Switch:
    """One server's tokenizer, whose template a test chooses."""

    def __init__(self) -> None:
        self.current = tokenizer(PLAIN)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.current, name)


@contextmanager
def templated_server() -> Iterator[LiveServer]:
    engine = FakeEngine(max_model_len=2000)
    engine.tokenizer = Switch()  # type: ignore[assignment]
    with live_server(engine) as server:
        yield server


@pytest.fixture(scope="module")
def templated() -> Iterator[LiveServer]:
    with templated_server() as server:
        yield server


@pytest.fixture
def untried() -> Iterator[LiveServer]:
    """A server that has not seen any template be quick yet."""
    with templated_server() as server:
        yield server


@contextmanager
def asking(server: LiveServer) -> Iterator[Callable[[str], Ask]]:
    """A call of /v1/chat/completions under a template."""
    engine = server.engine
    engine.reset()
    with httpx2.Client(base_url=server.url, timeout=60, trust_env=False) as http:

        def under(template: str) -> Ask:
            engine.tokenizer.current = tokenizer(template)  # type: ignore[attr-defined]

            def post(*messages: dict[str, Any], **fields: Any) -> httpx2.Response:
                return http.post("/v1/chat/completions", json={"messages": list(messages), "max_tokens": 2} | fields)

            return post

        yield under


@pytest.fixture
def ask(templated: LiveServer) -> Iterator[Callable[[str], Ask]]:
    with asking(templated) as under:
        yield under


@pytest.fixture
def ask_untried(untried: LiveServer) -> Iterator[Callable[[str], Ask]]:
    with asking(untried) as under:
        yield under


def prompt(server: LiveServer) -> str:
    (ids,) = server.engine.prompts.values()
    return server.engine.tokenizer.decode(ids)


USER = {"role": "user", "content": "hi"}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": [1, "ä"]}'}}


def test_messages_without_content_and_from_tools(ask: Callable[[str], Ask], templated: LiveServer) -> None:
    template = (
        "{% for m in messages %}<{{ m.role }}|{{ m.tool_call_id }}>{{ m.content }}"
        "{% for call in m.tool_calls or [] %}{{ call.function.name }}{{ call.function.arguments | tojson }}{% endfor %}"
        "{% endfor %}"
    )
    answer = ask(template)(
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "42"}]},
        {"role": "assistant", "content": None},
        {"role": "assistant", "refusal": "no", "content": None},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": ""},
    )
    assert answer.status_code == 200, answer.text
    assert prompt(templated) == (
        '<user|>hi<assistant|>f{"x": [1, "ä"]}<tool|1>42<assistant|><assistant|>no<assistant|><user|>'
    )


def test_a_template_that_adds_texts_takes_null_content(ask: Callable[[str], Ask], templated: LiveServer) -> None:
    """As SmolLM's does: an undefined content would be a TypeError there."""
    template = "{% for m in messages %}{{ m['role'] + ':' + m['content'] }}{% endfor %}"
    assert ask(template)(USER, {"role": "assistant", "content": None}, USER).status_code == 200
    assert prompt(templated) == "user:hiassistant:user:hi"


def calls_and_results(*ids: str) -> list[dict[str, Any]]:
    """Of one call each."""
    found: list[dict[str, Any]] = [USER]
    for call_id in ids:
        found.append({"role": "assistant", "content": None, "tool_calls": [{**CALL, "id": call_id}]})
        found.append({"role": "tool", "tool_call_id": call_id, "content": "42"})
    return found


def test_a_template_that_takes_short_ids_only(ask: Callable[[str], Ask], templated: LiveServer) -> None:
    """As Mistral's do, which refuse the ids of all three APIs; a result still has its call's."""
    template = (
        "{% if tools %}[TOOL_CALLS]{% endif %}{% for m in messages %}{% for call in m.tool_calls or [] %}"
        "{% if call.id|length != 9 %}{{ raise_exception('length') }}{% endif %}<{{ call.id }}>{% endfor %}"
        "{% if m.role == 'tool' %}{% if m.tool_call_id|length != 9 %}{{ raise_exception('length') }}{% endif %}"
        "({{ m.tool_call_id }}){% endif %}{% endfor %}"
    )
    ids = ["call_" + "0" * 23 + "1", "call_" + "0" * 23 + "2", "toolu_1", "aB3dE6gH9", "ü"]
    answer = ask(template)(*calls_and_results(*ids))
    assert answer.status_code == 200, answer.text
    told = re.findall(r"<(\w{9})>\((\w{9})\)", prompt(templated))
    assert len({call for call, _ in told}) == 5 and all(call == result for call, result in told)
    assert told[3][0] == "aB3dE6gH9", "its own stay"


def test_a_template_that_adds_arguments_as_text(ask: Callable[[str], Ask], templated: LiveServer) -> None:
    """As DeepSeek's do."""
    template = (
        "{% for m in messages %}{% for call in m.tool_calls or [] %}"
        "{{ '<' + call['function']['name'] + '\n' + call['function']['arguments'] + '>' }}{% endfor %}"
        "{{ m.role + ':' + m['content'] }}{% endfor %}"
    )
    answer = ask(template)(*calls_and_results("1"), {"role": "assistant", "content": None}, USER)
    assert answer.status_code == 200, answer.text
    assert prompt(templated) == 'user:hi<f\n{"x": [1, "ä"]}>assistant:tool:42assistant:user:hi'


@pytest.mark.parametrize(
    ("message", "param", "says"),
    [
        ({"role": "user", "content": None}, "messages[1].content", "not null"),
        ({"role": "tool", "content": None}, "messages[1].content", "not null"),
        ({"role": "system"}, "messages[1].content", "Field required"),
        ({"role": "user", "content": "x", "tool_calls": [CALL]}, "messages[1].tool_calls", "only the assistant"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": 5, "arguments": "{}"}}]},
         "messages[1].tool_calls[0].function.name", "Expected `str`"),
        ({"role": "user", "content": 5}, "messages[1].content", "valid string"),
        ({"role": "user", "content": [{"type": "text", "text": None}]}, "messages[1].content", "no text"),
    ],
)  # fmt: skip
def test_messages_that_say_nothing(ask: Callable[[str], Ask], message: dict[str, Any], param: str, says: str) -> None:
    error = error_of(ask(PLAIN)(USER, message), 400)
    assert error["param"] == param and says in error["message"]


FAILING = {
    "division": "{{ 1 // (messages | length - 1) }}",
    "overflow": "{{ 10.0 ** 400 }}",
    "recursion": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "undefined": "{{ messages[0].nothing.more }}",
    "type": "{{ messages[0] + 5 }}",
    "key": "{{ messages[5]['x'].y }}",
    "unsafe": "{{ ''.__class__.__mro__ }}",
    "range": "{% for i in range(10000000) %}{% endfor %}",
    "said so": "{{ raise_exception('roles must alternate') }}",
    "memory": "{{ 'x' * 10 ** 15 }}",
}


@pytest.mark.parametrize("fault", FAILING)
def test_a_template_that_fails_is_the_clients_to_know(ask: Callable[[str], Ask], fault: str) -> None:
    post = ask(FAILING[fault])
    error = error_of(post(USER), 400)
    assert (error["param"], error["code"]) == ("messages", "chat_template_failed")
    assert error_of(post(USER, chat_template_kwargs={"a": 1}), 400)["param"] in ("messages", "chat_template_kwargs")
    assert ask(PLAIN)(USER).status_code == 200


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{{ 'x' * 100 }}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    ],
)
def test_a_template_that_does_not_end_is_ended(
    ask: Callable[[str], Ask], template: str, templated: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "TEMPLATE_CPU_S", 0.1)
    post = ask(template)
    for _ in range(3):  # its thread lives on
        error = error_of(post(USER), 400)
        assert (error["param"], error["code"]) == ("messages", "chat_template_failed")
        assert "CPU time" in error["message"]
    assert error_of(post(USER, chat_template_kwargs={"n": 1}), 400)["param"] == "chat_template_kwargs"
    assert ask(PLAIN)(USER).status_code == 200


def test_what_a_template_makes_is_bounded_like_any_prompt(ask: Callable[[str], Ask]) -> None:
    error = error_of(ask("{{ messages[0].content * 100000 }}")(USER), 400)
    assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")


@pytest.mark.parametrize(
    "kwargs", [{"chat_template": "x"}, {"tokenize": True}, {"tools": 5}, {"messages": []}, {"self": 1}, {"padding": 1}]
)
def test_variables_that_are_not_the_templates_own(ask: Callable[[str], Ask], kwargs: dict[str, Any]) -> None:
    assert error_of(ask(PLAIN)(USER, chat_template_kwargs=kwargs), 400)["param"] == "chat_template_kwargs"


def test_a_template_that_was_quick_is_still_ended_when_it_is_not(
    ask_untried: Callable[[str], Ask], untried: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short conversations are rendered on the event loop once the template has shown to be quick; the first that is not
    costs the loop a moment, and no other one is rendered there."""
    monkeypatch.setattr(texts, "TEMPLATE_CPU_S", 0.3)
    threads: list[str] = []
    tokenizer = untried.engine.tokenizer
    post = ask_untried(
        "{% if messages[0].content == 'slow' %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}"
        "{% endfor %}{% endif %}{{ messages[0].content }}"
    )
    render = tokenizer.current.render_chat

    def recording(*args: Any, **kwargs: Any) -> str:
        threads.append(threading.current_thread().name)
        return render(*args, **kwargs)

    monkeypatch.setattr(tokenizer.current, "render_chat", recording)
    for _ in range(40):
        assert post(USER).status_code == 200
    assert threads[0].startswith("texts-")
    for _ in range(2):
        slow = error_of(post({"role": "user", "content": "slow"}), 400)
        assert slow["code"] == "chat_template_failed"
    assert threads[-1].startswith("texts-")
    assert post(USER).status_code == 200
    assert threads[-1].startswith("texts-")
