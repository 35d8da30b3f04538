"""What `longspan serve` says once it answers: things to paste."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys

from rich.console import Console
from rich.markup import escape

from longspan.engine.protocol import EngineClient
from longspan.entrypoints.bearer import VARIABLE

_QUESTION = "What is the capital of France?"


def print_welcome(engine: EngineClient, url: str, *, asks_for_key: bool = False) -> None:
    """Print it coloured on a terminal, plain elsewhere; never wrapped, so that it can be copied.

    Examples ask for the likeliest answer: a small model at temperature 1, the API's default, talks nonsense. Where the
    server asks for a key (asks_for_key) they take it from the environment, as OpenAI's clients do: it is never printed.
    """
    console = Console(soft_wrap=True, highlight=False)
    model, config = engine.model_name, engine.config
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": _QUESTION}], "temperature": 0})
    console.print(
        f"[bold green]Longspan[/] serves [bold]{escape(model)}[/] at [bold]{url}/v1[/]: "
        f"{_plural(config.num_instances, 'instance')}, requests of up to {engine.request_limit} tokens, "
        f"{engine.total_kv_tokens} KV tokens in all.\n"
        f"[dim]Watch it at[/] {url}/\n"
    )
    headers = "-H 'Content-Type: application/json'"
    if asks_for_key:
        console.print(f"[dim]It asks for a key:[/] export {VARIABLE}=...\n")
        headers += f' -H "Authorization: Bearer ${VARIABLE}"'
    for title, text in (
        ("Try it here", f"{_command()} chat --url {url}"),
        ("with curl", f"curl {url}/v1/chat/completions {headers} -d {shlex.quote(body)}"),
        ("with Python (pip install openai)", _python(url, model, asks_for_key)),
    ):
        console.print(f"[dim]{title}:[/]")
        console.print(text, markup=False)
        console.print()
    console.print("[dim]Ctrl-C finishes the running requests and stops; twice stops at once.[/]")


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _command() -> str:
    """How this shell would call us: by name if that is on its path."""
    if shutil.which("longspan"):
        return "longspan"
    called = os.path.relpath(sys.argv[0])
    return f"{os.path.relpath(sys.executable)} -m longspan" if called.endswith(".py") else called


def _python(url: str, model: str, asks_for_key: bool) -> str:
    key = "" if asks_for_key else ', api_key="none"'
    return f"""\
from openai import OpenAI
client = OpenAI(base_url="{url}/v1"{key})
answer = client.chat.completions.create(
    model={json.dumps(model)}, messages=[{{"role": "user", "content": "{_QUESTION}"}}], temperature=0
)
print(answer.choices[0].message.content)"""
